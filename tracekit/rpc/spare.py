"""What a process must have to spare before grpc opens a channel in it: where grpc lacks something it aborts."""

from __future__ import annotations

import _thread
import errno
import os
import resource
import threading
import time

# of descriptors and of threads; grpc has five and nine on a machine of two cores, more threads on a larger one, and the
# engine may need some meanwhile
SPARE = 32
PATIENCE_SECS = 10.0  # a busy machine takes that long to run so many threads


def lacking() -> str:
    """Return what this process has hardly one more of: where grpc lacks a descriptor or a thread it aborts it."""
    try:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if 0 <= limit < len(os.listdir("/proc/self/fd")) + SPARE:
            return "file descriptor"
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return "file descriptor"
    return "" if _has_threads() else "thread"


def _has_threads() -> bool:
    """Whether as many can be started as grpc may need: limits are of user, process and container, only trying tells."""
    gate = threading.Lock()
    begun: list[int] = []
    try:
        with gate:
            for _ in range(SPARE):
                _thread.start_new_thread(_pass, (gate, begun))
    except RuntimeError:
        return False
    deadline = time.monotonic() + PATIENCE_SECS
    while len(begun) < SPARE or _num_left(begun) > SPARE // 4:  # they would be in grpc's way
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def _pass(gate: threading.Lock, begun: list[int]) -> None:
    begun.append(threading.get_native_id())
    with gate:
        pass


def _num_left(begun: list[int]) -> int:
    """Return how many of these threads are there; others that the process starts meanwhile are not ours to wait for."""
    return sum(os.path.exists(f"/proc/self/task/{number}") for number in begun)
