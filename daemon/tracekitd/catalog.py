"""The engines that this daemon has heard of, and how far each of them has got."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from tracekit.rpc import messages
from tracekit.trace.batch import BatchMeta
from tracekit.trace.spool import ResumePoint
from tracekit.trace.tally import FIRST_TRAINER, free_number


@dataclass
class Engine:
    """One engine process, or a trainer's. Used on the event loop only."""

    number: int
    engine_id: str
    trainer: bool = False  # it is no engine, but a trainer that annotates
    received_seq: int = 0  # handed to the writer
    durable_seq: int = 0  # on the disk
    produced: dict[str, int] = field(default_factory=dict)  # the producer's counters as of received_seq
    lost: dict[str, int] = field(default_factory=dict)
    last: bool = False  # it said goodbye, as of received_seq
    stream: int = 0  # the number of its newest connection: an older one has nothing to say any more
    open: bool = False  # that connection is there
    party: str = ""  # whose it is, see `peers.party_of`
    progress: asyncio.Event = field(default_factory=asyncio.Event)  # set, and replaced, when anything here moves
    commands: dict[str, messages.Command] = field(default_factory=dict)  # by id, those that are not answered
    results: dict[str, messages.CommandResult] = field(default_factory=dict)  # of commands, durable, to be fetched

    @property
    def ended(self) -> bool:
        """Its last batch is on the disk."""
        return self.last and self.durable_seq == self.received_seq

    def durable(self, seq: int) -> None:
        """Note that everything up to `seq` is on the disk."""
        self.durable_seq = max(self.durable_seq, seq)
        self.wake()

    def received(self, meta: BatchMeta) -> None:
        """Note the next batch."""
        self.received_seq = meta.seq
        self.produced, self.lost, self.last = meta.produced, meta.lost, meta.last

    def connected(self, party: str) -> int:
        """Note that a connection of a party began, and return its number; one that was there is to end."""
        self.stream, self.open, self.party = self.stream + 1, True, party
        self.wake()
        return self.stream

    def oust(self) -> None:
        """Have the connection end."""
        self.stream, self.open = self.stream + 1, False
        self.wake()

    def disconnected(self, stream: int) -> None:
        """Note that a connection ended."""
        if stream == self.stream:
            self.open = False
        self.wake()

    def answered(self, result: messages.CommandResult) -> None:
        """Keep the result of a command that somebody waits for."""
        if self.commands.pop(result.id, None) is not None:
            self.results[result.id] = result
            self.wake()

    def wake(self) -> None:
        """Wake who waits for progress."""
        self.progress.set()
        self.progress = asyncio.Event()


class Catalog:
    """Engines by id, numbered from 0 in the order of their first hello, trainers from `FIRST_TRAINER`.

    A restart goes on from the spool.
    """

    def __init__(self, resume: Mapping[str, ResumePoint]) -> None:
        self._engines = {
            engine_id: Engine(
                number=point.engine,
                engine_id=engine_id,
                trainer="annotations" in point.produced,
                received_seq=point.seq,
                durable_seq=point.seq,
                produced=dict(point.produced),
                lost=dict(point.lost),
                last=point.last,
            )
            for engine_id, point in resume.items()
        }

    def find(self, engine_id: str) -> Engine | None:
        """Return a known engine."""
        return self._engines.get(engine_id)

    def greet(self, engine_id: str, trainer: bool = False) -> Engine:
        """Return the engine, or trainer, of this id, numbering a new one."""
        engine = self._engines.get(engine_id)
        if engine is None:
            taken = [known.number for known in self._engines.values()]
            number = free_number(taken, FIRST_TRAINER if trainer else 0)
            engine = self._engines[engine_id] = Engine(number, engine_id, trainer)
        return engine

    def forget_silent(self, engine: Engine) -> None:
        """Forget an engine that went away without having sent anything."""
        if not engine.received_seq and not engine.open:
            self._engines.pop(engine.engine_id, None)

    def engines(self) -> list[Engine]:
        """Return every engine in the order of their numbers."""
        return sorted(self._engines.values(), key=lambda engine: engine.number)
