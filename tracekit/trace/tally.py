"""One engine as the stored batches, and the spool's index, tell it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from tracekit.trace.batch import BatchMeta
from tracekit.trace.runs import Run, holes, joined

FIRST_TRAINER = 1 << 16  # trainers are numbered from here: the engines' numbers do not hang on who came first


@dataclass
class Tally:
    """Numbers and counters of one engine, or of one trainer.

    Attributes:
        pieces: what is stored, as finely as it is known: of hot batches each one.
        standing: up to where the engine is known to have got, stored or not.
        settled: its holes are told by losses that lie in the file, and cannot be found again.
        idle: it never said goodbye, but had told everything.
        left_out: rows by table that are not wanted in this trace.
    """

    engine: int
    engine_id: str
    pieces: list[Run] = field(default_factory=list)
    stored: Counter[str] = field(default_factory=Counter)
    standing: Run | None = None
    settled: bool = False
    idle: bool = False
    left_out: Counter[str] = field(default_factory=Counter)

    def add_hot(self, meta: BatchMeta) -> None:
        """Add a batch of a segment; they may come in any order, but each number once."""
        self.__dict__.pop("runs", None)
        self.pieces.append(Run.of(meta))
        self.stored.update(meta.rows)

    def add_sealed(self, meta: BatchMeta) -> bool:
        """Add what one sealed file holds, as any of its batches of this engine tells it.

        Returns:
            False where some of it is here already: rows would be there twice.
        """
        # one that was sealed before ends were kept has the counters of the whole alone
        ends = meta.ends or tuple({"before": {}, "produced": meta.produced, "lost": meta.lost} for _ in meta.seqs)
        runs = [Run(first, last, **counters) for (first, last), counters in zip(meta.seqs, ends, strict=True)]
        if any(run.first <= old.last and old.first <= run.last for run in runs for old in self.pieces):
            return False
        self.__dict__.pop("runs", None)
        self.settled = self.settled or len(meta.ends) != len(meta.seqs)
        end = max(meta.end, runs[-1].last if runs else 0)
        if end >= (self.standing.last if self.standing else 0):
            self.idle = meta.idle
        self.pieces += runs
        self.know(Run(1, end, {}, meta.produced, meta.lost, meta.last) if end else None)
        return True

    def leave_out(self, rows: Mapping[str, int]) -> None:
        """Take rows that are left out on purpose out of what is stored, and out of the counters at the end."""
        self.settled = True
        self.stored.subtract(rows)
        self.left_out.update(rows)

    def know(self, standing: Run | None) -> None:
        """Take up to where the engine is known to have got."""
        if standing is not None and (self.standing is None or standing.last >= self.standing.last):
            self.standing = standing

    @cached_property
    def runs(self) -> list[Run]:
        """The stored numbers, ascending, in runs that do not touch."""
        return joined(self.pieces)

    @property
    def end_seq(self) -> int:
        """The last number that is known: what came after it is in no counter; 0 where there is none."""
        return max(self.runs[-1].last if self.runs else 0, self.standing.last if self.standing else 0)

    @property
    def holes(self) -> list[tuple[int, int, Counter[str]]]:
        """The numbers up to the last known one that are not stored, and their rows by table."""
        if self.settled:
            return []
        known, standing = list(self.runs), self.standing
        if standing is not None and standing.last > (known[-1].last if known else 0):
            end = standing.last + 1  # what is missing at the end is a hole in front of a batch that never was
            known.append(Run(end, end, standing.produced, standing.produced, standing.lost))
        return holes(known)

    @property
    def produced(self) -> Counter[str]:
        """Rows by table since the engine began, dropped ones included."""
        produced = self._counters(Counter[str](), *(run.produced for run in self._ends))
        produced.subtract(self.left_out)
        return +produced

    @property
    def lost(self) -> Counter[str]:
        """Of these, those that its recorder never sent."""
        return self._counters(Counter[str](), *(run.lost for run in self._ends))

    @property
    def last(self) -> bool:
        """Whether it said goodbye."""
        return any(run.goodbye for run in self._ends)

    @property
    def is_trainer(self) -> bool:
        """Whether this is a trainer's process: nobody else annotates, and it does nothing else."""
        return "annotations" in self.produced

    def rest(self, seq: int) -> None:
        """Take the engine's claim that it was idle, with everything told up to batch `seq`, if all that is stored."""
        self.idle = (self.runs[-1].last if self.runs else 0) >= seq

    @property
    def _ends(self) -> list[Run]:
        return [*self.runs, *([self.standing] if self.standing else [])]

    @staticmethod
    def _counters(total: Counter[str], *counts: dict[str, int]) -> Counter[str]:
        for count in counts:
            total |= Counter(count)
        return total


def who(number: int) -> str:
    """Say whom a number stands for, such as `engine 0`."""
    return f"{'trainer' if number >= FIRST_TRAINER else 'engine'} {number}"


def free_number(taken: Iterable[int], like: int = 0) -> int:
    """Return the number behind those that are taken, of engines or, where `like` is a trainer's, of trainers."""
    first = FIRST_TRAINER if like >= FIRST_TRAINER else 0
    last = FIRST_TRAINER if not first else 1 << 32
    return max((number for number in taken if first <= number < last), default=first - 1) + 1
