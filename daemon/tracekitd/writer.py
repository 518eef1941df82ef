"""The only thread that writes the spool: appends in order, and syncs once for all that waits."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tracekit.errors import OutputError
from tracekit.trace.batch import BatchMeta
from tracekit.trace.spool import SpoolWriter
from tracekitd.log import say

RETRY_SECS = 0.25  # doubled at each refusal, up to
MAX_RETRY_SECS = 8.0


@dataclass(frozen=True)
class _Job:
    batches: Sequence[tuple[pa.RecordBatch, BatchMeta]]
    done: Callable[[], None]  # called on this thread, once they are on the disk


class Writer:
    """Group commit: what comes while the disk is busy is synced together, as soon as it is not.

    A disk that refuses (it is full, say) stops nothing: the batches wait, nothing is confirmed meanwhile, and the
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
        self._jobs: list[_Job] = []  # taken, not yet on the disk
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

    def commit(self, batches: Sequence[tuple[pa.RecordBatch, BatchMeta]], done: Callable[[], None]) -> None:
        """Write batches; `done` is called from the writer's thread when they, and all before them, are durable."""
        self._queue.put(_Job(batches, done))

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
            goes_on = True
            while goes_on:
                taken = [self._queue.get(), *self._at_hand()]
                self._jobs = [job for job in taken if job is not None]
                goes_on = None not in taken
                if self._jobs:
                    self._commit()
        except _GivenUp:
            left = [*self._jobs, *self._at_hand()]
            self.given_up = sum(len(job.batches) for job in left if job is not None)
        except BaseException as error:
            self._failed(error)

    def _at_hand(self) -> list[_Job | None]:
        return [self._queue.get() for _ in range(self._queue.qsize())]

    def _commit(self) -> None:
        for job in self._jobs:
            for batch, meta in job.batches:
                self._insist(self._spool.append, batch, meta)
        begin = time.monotonic()
        self._insist(self._spool.sync)
        self.num_syncs, self.sync_secs = self.num_syncs + 1, self.sync_secs + time.monotonic() - begin
        for job in self._jobs:
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
