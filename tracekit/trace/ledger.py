"""What did not arrive: the arithmetic of sequence numbers and counters. Numbers in, losses out.

All that adds, subtracts, groups or excuses losses is here, and so is the text of a loss.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tracekit.tables import TABLES
from tracekit.trace.batch import BatchMeta
from tracekit.trace.schema import row_schema

UNKNOWN_ENGINE = (1 << 32) - 1

GAP = "gap: batches that never reached the disk"
COUNTED = "counted as produced, in no batch"
OPEN_END = "open end: the engine never said goodbye, rows after its last batch are unknown"
CORRUPT = "corrupt: damaged bytes in the spool"
IDLE_END = "killed, or left running, while idle: it never said goodbye, and nothing of it is missing"


@dataclass(frozen=True)
class Loss:
    """A run of sequence numbers whose rows are not in the trace.

    Example:
        Loss(engine=0, from_seq=7, to_seq=9, reason="buffer full", rows={"tokens": 300})
    """

    engine: int | None  # None: damaged bytes that tell no engine
    from_seq: int  # 0 where the rows had no number yet
    to_seq: int  # 0 where the end is unknown
    reason: str
    rows: dict[str, int]  # exact rows by table; empty where nobody knows

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Loss:
        """Read a row of the `losses` table."""
        engine = None if row["engine"] == UNKNOWN_ENGINE else row["engine"]
        return cls(engine, row["from_seq"], row["to_seq"], row["reason"], json.loads(row["rows"]))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return dict(vars(self))

    def __str__(self) -> str:
        """Say it in one line, such as `engine 0, batches 7 to 9: steps 2, tokens 300 (buffer full)`."""
        where = "unknown engine" if self.engine is None else f"engine {self.engine}"
        if self.from_seq and self.from_seq == self.to_seq:
            where += f", batch {self.from_seq}"
        elif self.from_seq:
            where += f", batches {self.from_seq} " + (f"to {self.to_seq}" if self.to_seq else "and later")
        rows = ", ".join(f"{name} {count:,}" for name, count in sorted(self.rows.items()))
        return f"{where}: {rows or 'rows unknown'} ({self.reason})"


@dataclass
class Tally:
    """One engine as the stored batches tell it."""

    engine: int
    engine_id: str
    runs: list[tuple[int, int]] = field(default_factory=list)  # stored sequence numbers, ascending, not touching
    holes: list[tuple[int, int, Counter[str]]] = field(default_factory=list)  # missing numbers and their rows
    produced: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    stored: Counter[str] = field(default_factory=Counter)
    last: bool = False
    idle: bool = False  # it never said goodbye, but had told everything

    @property
    def end_seq(self) -> int:
        """The last stored number: what came after it is in no counter; 0 where nothing is stored."""
        return self.runs[-1][1] if self.runs else 0

    def rest(self, seq: int) -> None:
        """Take the engine's claim that it was idle, with everything told up to batch `seq`, if all that is stored."""
        self.idle = self.end_seq >= seq

    @classmethod
    def of_hot(cls, metas: Iterable[BatchMeta]) -> Tally:
        """Sum up the batches of one engine; they may come in any order, but each number once."""
        ordered = sorted(metas, key=lambda meta: meta.seq)
        tally = cls(ordered[0].engine, ordered[0].engine_id)
        for meta in ordered:
            expected = tally.runs[-1][1] + 1 if tally.runs else 1
            if meta.seq == expected and tally.runs:
                tally.runs[-1] = (tally.runs[-1][0], meta.seq)
            else:
                tally.runs.append((meta.seq, meta.seq))
            if meta.seq > expected:
                rows = Counter(meta.produced)
                rows.subtract(meta.rows)
                rows.subtract(tally.produced)
                tally.holes.append((expected, meta.seq - 1, +rows))
            tally.produced |= Counter(meta.produced)
            tally.lost |= Counter(meta.lost)
            tally.stored.update(meta.rows)
            tally.last |= meta.last
        return tally

    @classmethod
    def of_sealed(cls, metas: Iterable[BatchMeta]) -> Tally:
        """Sum up the sealed batches of one engine, each of which carries the counters of the whole."""
        listed = list(metas)
        first = listed[0]
        tally = cls(first.engine, first.engine_id, list(first.seqs), last=first.last, idle=first.idle)
        tally.produced, tally.lost = Counter(first.produced), Counter(first.lost)
        for meta in listed:
            tally.stored.update(meta.rows)
        return tally


def clip(loss: Loss, stored: Iterable[BatchMeta]) -> Loss | None:
    """Take out of a reported loss what is stored after all: an Ack that did not arrive makes a recorder report it."""
    rows, inside = Counter(loss.rows), []
    for meta in stored:
        if loss.from_seq <= meta.seq <= loss.to_seq:
            inside.append(meta.seq)
            rows.subtract(meta.rows)
    first = loss.from_seq
    while first in inside:
        first += 1
    if first > loss.to_seq and inside:
        return None
    return Loss(loss.engine, first, loss.to_seq, loss.reason, dict(+rows))


def unreported(tally: Tally, reported: Iterable[Loss]) -> list[Loss]:
    """Return the losses of an engine that counters and numbers prove and nobody reported.

    It relies on `produced` counting every row of the batches up to and including the one that carries it, and every
    row dropped before it.
    """
    known = [loss for loss in reported if loss.engine == tally.engine]
    found = []
    for first, last, rows in tally.holes:
        inside = [loss for loss in known if first <= loss.from_seq and loss.to_seq <= last]
        missing = [seq for seq in (first, last) if not any(loss.from_seq <= seq <= loss.to_seq for loss in inside)]
        covered = sum(loss.to_seq - loss.from_seq + 1 for loss in inside)
        if covered < last - first + 1:
            left = Counter(rows)
            for loss in inside:
                left.subtract(loss.rows)
            start = first if first in missing else max(loss.to_seq for loss in inside if loss.from_seq <= first) + 1
            end = last if last in missing else min(loss.from_seq for loss in inside if loss.to_seq >= last) - 1
            found.append(Loss(tally.engine, start, end, GAP, dict(+left)))
    uncounted = {
        table: produced - stored - lost
        for table, (produced, stored, lost) in balance(tally, [*known, *found]).items()
        if produced > stored + lost
    }
    if uncounted:
        found.append(Loss(tally.engine, 0, 0, COUNTED, uncounted))
    if _open_end(tally, known) and not tally.idle:
        found.append(Loss(tally.engine, tally.end_seq + 1, 0, OPEN_END, {}))
    return found


def notes(tallies: Iterable[Tally], losses: Iterable[Loss]) -> list[str]:
    """Return a sentence for each engine that never said goodbye, and lost nothing by it."""
    known = list(losses)
    return [f"engine {tally.engine}: {IDLE_END}" for tally in tallies if tally.idle and _open_end(tally, known)]


def _open_end(tally: Tally, losses: Iterable[Loss]) -> bool:
    """Whether an engine never said goodbye, and no loss speaks of what came after its last batch."""
    return not tally.last and not any(loss.engine == tally.engine and loss.from_seq > tally.end_seq for loss in losses)


def balance(tally: Tally, losses: Iterable[Loss]) -> dict[str, tuple[int, int, int]]:
    """Return by table how many rows an engine produced, how many of them are stored, and how many are known lost.

    The rows of `losses` itself are left out, and so are losses after the last counter, which counts none of them.
    """
    lost: Counter[str] = Counter()
    for loss in losses:
        if loss.engine == tally.engine and loss.from_seq <= tally.end_seq:
            lost.update(loss.rows)
    tables = {*tally.produced, *tally.stored, *lost} - {"losses"}
    return {table: (tally.produced[table], tally.stored[table], lost[table]) for table in sorted(tables)}


def so_far(losses: Iterable[Loss]) -> list[Loss]:
    """Return the losses of a trace that is being written: that an engine has not said goodbye is not one yet."""
    return [loss for loss in losses if loss.reason != OPEN_END]


def settled(reported: Iterable[Loss], found: Iterable[Loss]) -> list[Loss]:
    """Return each loss once, as a sealed trace keeps them: damaged bytes are one where nothing else tells of them.

    What damage took shows as a gap, a count or an open end of its engine, if the engine is known at all.
    """
    proven = [loss for loss in found if loss.engine is not None]
    damaged = any(loss.engine is None for loss in (*reported, *found))
    placed = [loss for loss in reported if loss.engine is not None] + proven
    return [*placed, Loss(None, 0, 0, CORRUPT, {})] if damaged and not proven else placed


def lost_tables(losses: Iterable[Loss], engine: int) -> set[str]:
    """Return the tables of an engine that have lost rows; all of them where nobody knows which."""
    found: set[str] = set()
    for loss in losses:
        if loss.engine in (None, engine):
            found |= set(loss.rows) or set(TABLES)
    return found


def num_lost_rows(losses: Iterable[Loss]) -> int:
    """Return how many rows are missing at least: a loss of unknown size counts as one."""
    return sum(max(sum(loss.rows.values()), 1) for loss in losses)


def loss_table(losses: Iterable[Loss]) -> pa.Table:
    """Return losses as the `losses` table."""
    rows = [
        {
            "engine": UNKNOWN_ENGINE if loss.engine is None else loss.engine,
            "from_seq": loss.from_seq,
            "to_seq": loss.to_seq,
            "reason": loss.reason,
            "rows": json.dumps(loss.rows, sort_keys=True),
        }
        for loss in losses
    ]
    return pa.Table.from_pylist(rows, schema=row_schema("losses"))
