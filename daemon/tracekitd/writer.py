"""The only thread that touches the spool: appends in order, and syncs for many batches at once."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tracekit.errors import OutputError
from tracekit.trace.batch import BatchMeta
from tracekit.trace.spool import SpoolWriter
from tracekitd.log import say

COMMIT_SECS = 0.2
COMMIT_BYTES = 1 << 20
RETRY_SECS = 0.25  # doubled at each refusal, up to
MAX_RETRY_SECS = 8.0


@dataclass(frozen=True)
class _Job:
    batch: pa.RecordBatch | None  # None: a flush
    meta: BatchMeta | None
    done: Callable[[], None]  # called on this thread, once it is on the disk


class Writer:
    """Group commit: a batch is confirmed at most 200 ms, or 1 MiB, after it was appended.

    A disk that refuses (it is full, say) stops nothing: the batch waits, nothing is confirmed meanwhile, and the
    recorders keep what is not confirmed.

    Args:
        spool: ended by `stop`; who made it closes it.
        failed: called once, on the writer's thread, for an error that is ours; nothing is confirmed after it.

    Attributes:
        given_up: batches that a disk refused to the end; nobody was told that they are there.
        num_syncs, sync_secs: how often it synced, and what that took.
    """

    def __init__(self, spool: SpoolWriter, failed: Callable[[BaseException], None]) -> None:
        self._spool = spool
        self._failed = failed
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._waiting: list[_Job] = []  # appended, not yet on the disk
        self._unsynced = 0
        self._deadline = 0.0
        self._refusing = False
        self._give_up_at: float | None = None
        self.given_up = 0
        self.num_syncs, self.sync_secs = 0, 0.0
        self._thread = threading.Thread(target=self._run, name="tracekitd-writer")
        self._thread.start()

    @property
    def failed_syncs(self) -> int:
        """How often the disk refused to sync."""
        return self._spool.failed_syncs

    def append(self, batch: pa.RecordBatch, meta: BatchMeta, done: Callable[[], None]) -> None:
        """Write a batch after those before it; `done` is called from the writer's thread when it is durable."""
        self._queue.put(_Job(batch, meta, done))

    def flush(self, done: Callable[[], None]) -> None:
        """Call `done` from the writer's thread when everything handed over so far is durable."""
        self._queue.put(_Job(None, None, done))

    def stop(self, timeout_secs: float) -> None:
        """Write and sync what was handed over, then end the spool; a disk that refuses is given `timeout_secs`.

        Raises:
            OutputError: the disk still refuses; what it did not take was not confirmed to anyone.
        """
        self._give_up_at = time.monotonic() + timeout_secs
        self._queue.put(None)
        self._thread.join()
        if self.given_up:
            say(f"the disk refused to the end: {self.given_up} batches were given up, unconfirmed")
        self._spool.end()

    def _run(self) -> None:
        try:
            while self._step():
                pass
            if self._waiting:
                self._commit()
        except _GivenUp:
            left = [*self._waiting, *self._left()]
            self.given_up = sum(job is not None and job.batch is not None for job in left)
        except BaseException as error:
            self._failed(error)

    def _left(self) -> Iterator[_Job | None]:
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._queue.get_nowait()

    def _step(self) -> bool:
        try:
            wait = max(0.0, self._deadline - time.monotonic()) if self._waiting else None
            job = self._queue.get(timeout=wait)
        except queue.Empty:
            self._commit()
            return True
        if job is None:
            return False
        if not self._waiting:
            self._deadline = time.monotonic() + COMMIT_SECS
        self._waiting.append(job)
        if job.batch is not None and job.meta is not None:
            self._unsynced += self._insist(self._spool.append, job.batch, job.meta)
        # who flushes, or says goodbye, waits for the answer
        at_once = job.meta is None or job.meta.last
        if at_once or self._unsynced >= COMMIT_BYTES or time.monotonic() >= self._deadline:
            self._commit()
        return True

    def _commit(self) -> None:
        begin = time.monotonic()
        self._insist(self._spool.sync)
        self.num_syncs, self.sync_secs = self.num_syncs + 1, self.sync_secs + time.monotonic() - begin
        done, self._waiting, self._unsynced = self._waiting, [], 0
        for job in done:
            job.done()

    def _insist(self, action: Callable[..., Any], *arguments: Any) -> Any:
        pause = RETRY_SECS
        while True:
            try:
                result = action(*arguments)
            except OutputError as error:
                if not self._refusing:
                    self._refusing = True
                    say(f"{error}; nothing is confirmed until it works")
                if self._give_up_at is not None and time.monotonic() >= self._give_up_at:
                    raise _GivenUp from None
                time.sleep(pause if self._give_up_at is None else RETRY_SECS)
                pause = min(2 * pause, MAX_RETRY_SECS)
                continue
            if self._refusing:
                self._refusing = False
                say("the spool takes data again")
            return result


class _GivenUp(Exception):
    """The daemon is stopping and the disk still refuses."""
