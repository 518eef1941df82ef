"""Batches on their way to the spool: those of one engine become one record batch, and all are committed together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial

from tracekitd.arrow import to_record_batch
from tracekitd.catalog import Engine
from tracekitd.intake import Received
from tracekitd.stats import Stats
from tracekitd.watch import Watch
from tracekitd.writer import Writer

COMMIT_SECS = 0.2
COMMIT_BYTES = 4 << 20  # a record batch and its sync cost as much for one MiB


@dataclass
class _Pending:
    """What one engine sent since the last commit."""

    engine: Engine
    received: list[Received] = field(default_factory=list)
    num_bytes: int = 0


class Gatherer:
    """Hands what engines send to the writer, 200 ms or 4 MiB after the first of it, merged by engine.

    What a record batch costs hardly depends on its rows, so that many small ones would be dear.

    Used on the event loop only; record batches are made on `pool`, whose one thread keeps their order.

    Args:
        writer: takes record batches, and syncs them.
        pool: of one thread.
        stats: where it counts commits.
        done: called on the event loop when batches of an engine are durable, with them and their bytes.
        failed: called on the event loop when they could not be made into a record batch: a fault of ours.
        watch: looks at each record batch; None: nobody does.
    """

    def __init__(
        self,
        writer: Writer,
        pool: Executor,
        stats: Stats,
        done: Callable[[Engine, list[Received], int], None],
        failed: Callable[[BaseException], None],
        watch: Watch | None = None,
    ) -> None:
        self._watch = watch
        self._writer = writer
        self._pool = pool
        self._stats = stats
        self._done = done
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, _Pending] = {}  # by number of the engine
        self._num_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, engine: Engine, received: Received, num_bytes: int) -> None:
        """Take one batch, the next of its engine."""
        if not self._pending:
            self._stats.begun()
        pending = self._pending.setdefault(engine.number, _Pending(engine))
        pending.received.append(received)
        pending.num_bytes += num_bytes
        self._num_bytes += num_bytes
        # who says goodbye, or answers a command, waits for the confirmation
        if received.meta.last or received.results or self._num_bytes >= COMMIT_BYTES:
            self.commit()
        elif self._timer is None:
            self._timer = self._loop.call_later(COMMIT_SECS, self.commit)

    def commit(self, then: Callable[[], None] | None = None) -> None:
        """Hand over what is there; `then` is called on the event loop when that, and all before it, is durable."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        pending, self._pending, self._num_bytes = list(self._pending.values()), {}, 0
        work = self._loop.run_in_executor(self._pool, self._hand_over, pending, then)
        work.add_done_callback(self._look)

    def _look(self, work: asyncio.Future[None]) -> None:
        if not work.cancelled() and (error := work.exception()):
            self._failed(error)

    def _hand_over(self, pending: list[_Pending], then: Callable[[], None] | None) -> None:
        told: list[Callable[[], None]] = [self._stats.durable] if pending else []
        made = []
        for item in pending:
            for together in _together(item.received):
                batch, meta = to_record_batch(together)
                made.append((batch, meta))
                if self._watch is not None:
                    self._watch.see(batch, meta)
            told.append(partial(self._done, item.engine, item.received, item.num_bytes))
        if then is not None:
            told.append(then)

        def durable() -> None:
            self._loop.call_soon_threadsafe(_call_all, told)

        self._writer.commit(made, durable)


def _call_all(functions: list[Callable[[], None]]) -> None:
    for function in functions:
        function()


def _together(received: list[Received]) -> Iterator[list[Received]]:
    """Cut what an engine sent into runs without a hole: one begins at each batch that has losses in front of it."""
    begin = 0
    for index in range(1, len(received)):
        if received[index].losses:
            yield received[begin:index]
            begin = index
    yield received[begin:]
