"""Labels of weights, handed to the daemon one after the other by a thread that may wait."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import say
from tracekit.rpc.credentials import Access

MAX_LABELS = 64
CALL_SECS = 10.0

Label = tuple[str, str | None, tuple[int, ...]]


def _client(address: str, access: Access) -> Any:
    from tracekit.rpc.client import ControlClient

    return ControlClient(address, CALL_SECS, access)


class Marks:
    """A queue of labels and its thread, which begins with the first of them.

    Args:
        address: of the daemon.
        access: to it.
        client: makes what is asked, a `ControlClient` with its `mark_weights`.

    Attributes:
        num_failed: labels that engines did not confirm, or that found no place.
    """

    def __init__(self, address: str, access: Access, client: Callable[[str, Access], Any] = _client) -> None:
        self._address, self._access, self._client = address, access, client
        self._labels: queue.Queue[Label | None] = queue.Queue(MAX_LABELS)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self.num_failed = 0

    def put(self, label: str, checkpoint: str | None, engines: tuple[int, ...]) -> bool:
        """Queue a label; return whether there was a place for it."""
        try:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._run, name="tracekit-marks", daemon=True)
                    self._thread.start()
            self._labels.put_nowait((label, checkpoint and _absolute(checkpoint), engines))
            return True
        except (queue.Full, RuntimeError, OSError) as error:  # at exit no thread can begin
            say(f"the label {label!r} of the weights is dropped: {type(error).__name__}")
            return False

    def close(self, timeout_secs: float) -> None:
        """Give what is queued this much time."""
        if self._thread is not None:
            try:
                self._labels.put_nowait(None)
            except queue.Full:
                return
            self._thread.join(timeout_secs)

    def _run(self) -> None:
        while (item := self._labels.get()) is not None:
            label, checkpoint, engines = item
            try:
                # a new channel each time: labels are rare, and certificates may have been replaced
                with self._client(self._address, self._access) as client:
                    client.mark_weights(label, checkpoint, engines)
            except Exception as error:
                self.num_failed += 1
                say(f"the label {label!r} of the weights may not be in the trace: {error}")


def _absolute(checkpoint: str) -> str:
    """Make a path of this machine absolute now: the process may go elsewhere before the label is sent."""
    return os.path.abspath(checkpoint) if os.path.exists(checkpoint) else checkpoint
