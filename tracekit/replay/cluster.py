"""Where workers run: a Ray of our own on this machine for as long as they do, or somebody's cluster."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Any

from tracekit.errors import WorkersError

_CONNECT_SECS = 5.0
_STORE_BYTES = 80 << 20  # Ray takes no less: what lies there is a unit's ids and scores
Start = Callable[..., Any]
"""Class and arguments to the handle of an actor."""


@contextmanager
def connected(workers: str, *, threads: int, gpus: bool) -> Iterator[tuple[Start, int]]:
    """Give what starts an actor, and how many there is room for; at the end, or at Ctrl-C, they are gone.

    Args:
        workers: a number, or `ray://HOST:PORT`.
        threads: cores that each worker needs.
        gpus: whether each needs a GPU.

    Raises:
        WorkersError: Ray cannot be started or reached, or has no room for one.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports to its makers where nobody says no
    import ray

    ours = not ray.is_initialized()
    folder = tempfile.mkdtemp(prefix="tk-ray-")
    with ExitStack() as ending:
        ending.enter_context(redirect_stdout(sys.stderr))  # Ray prints there that a worker died
        ending.callback(shutil.rmtree, folder, ignore_errors=True)
        if ours:
            ending.callback(ray.shutdown)
            _init(workers, threads, folder)
        options = {"num_cpus": threads, "num_gpus": int(gpus)}
        room = sum(_room(node["Resources"], threads, gpus) for node in ray.nodes() if node["Alive"])
        count = int(workers) if workers.isdecimal() else room
        if not count or count > room:
            each = f"{threads} threads" + (" and a GPU" if gpus else "")
            raise WorkersError(f"there is room for {room} workers of {each} (OMP_NUM_THREADS sets the threads)")

        def start(kind: type, *arguments: Any) -> Any:
            actor = ray.remote(kind).options(**options).remote(*arguments)
            ending.callback(ray.kill, actor)
            return actor

        yield start, count


def _init(workers: str, threads: int, folder: str) -> None:
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray puts its own in place
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if not workers.isdecimal():
            host, _, port = workers.removeprefix("ray://").rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECS).close()  # Ray would wait 30 s
            ray.init(workers, **quiet)
        else:
            ray.init(address="local", num_cpus=int(workers) * threads, include_dashboard=False,
                     object_store_memory=_STORE_BYTES, _temp_dir=folder, **quiet)  # fmt: skip
    except Exception as error:  # Ray raises all kinds
        raise WorkersError(f"no Ray for --workers {workers}: {_first_line(error)}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def _room(resources: dict[str, float], threads: int, gpus: bool) -> int:
    room = int(resources.get("CPU", 0) // threads)
    return min(room, int(resources.get("GPU", 0))) if gpus else room
