"""What did not arrive: the arithmetic of sequence numbers and counters. Numbers in, losses out.

All that adds, subtracts, groups or excuses losses is here, and so is the text of a loss.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tracekit.errors import TraceCorruptError
from tracekit.plain import one_line
from tracekit.tables import SHED, TABLES
from tracekit.trace.runs import is_count, is_counts, joined, touched
from tracekit.trace.schema import row_schema
from tracekit.trace.tally import Tally, who

UNKNOWN_ENGINE = (1 << 32) - 1

GAP = "gap: batches that never reached the disk"
COUNTED = "counted as produced, in no batch"
OPEN_END = "open end: the engine never said goodbye, rows after its last batch are unknown"
CORRUPT = "corrupt: damaged bytes in the spool"
_OF_ALL_REQUESTS = {"requests", "scheduled", "cache"}  # rows that stand for a part of what all requests share
FOUND = (GAP, COUNTED, OPEN_END)  # by arithmetic, again and again
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
        """Read a row of the `losses` table.

        Raises:
            TraceCorruptError: nobody can lose that.
        """
        engine = None if row["engine"] == UNKNOWN_ENGINE else row["engine"]
        try:
            rows = json.loads(row["rows"])
        except (ValueError, RecursionError):
            rows = None
        if not is_counts(rows) or not is_count(row["from_seq"]) or not is_count(row["to_seq"]):
            raise TraceCorruptError("a row of the table losses says what no writer writes")
        return cls(engine, row["from_seq"], row["to_seq"], row["reason"], rows)

    @classmethod
    def aside(cls, told: Mapping[str, Any], engine: int) -> Loss:
        """Read what a recorder said aside from its batches: engine_id, from_seq, to_seq, reason, rows."""
        return cls(engine, told["from_seq"], told["to_seq"], told["reason"], dict(told["rows"]))

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return dict(vars(self))

    def __str__(self) -> str:
        """Say it in one line, such as `engine 0, batches 7 to 9: steps 2, tokens 300 (buffer full)`."""
        where = "unknown engine" if self.engine is None else who(self.engine)
        if self.from_seq and self.from_seq == self.to_seq:
            where += f", batch {self.from_seq}"
        elif self.from_seq:
            where += f", batches {self.from_seq} " + (f"to {self.to_seq}" if self.to_seq else "and later")
        rows = ", ".join(f"{name} {count:,}" for name, count in sorted(self.rows.items()))
        return f"{where}: {rows or 'rows unknown'} ({one_line(self.reason)})"


Numbers = tuple[int, int]  # the first and the last of a run


def clip(loss: Loss, tally: Tally, own: Sequence[Numbers] = ()) -> Loss | None:
    """Take out of a reported loss what is stored after all: an Ack that did not arrive makes a recorder report it.

    Args:
        own: the numbers of the batch, or of the sealed file, that reports it: a batch that was put together from
            several may span what its recorder dropped between them.
    """
    first, last = loss.from_seq, loss.to_seq
    if not first or not last or not touched(tally.runs, first, last):
        return loss
    if any(low <= first and last <= high for low, high in own):
        return loss
    others = [piece for piece in tally.pieces if (piece.first, piece.last) not in own]
    rows = Counter(loss.rows)
    for piece in others:
        if first <= piece.first and piece.last <= last:
            rows.subtract(piece.inside)
    for run in (runs := joined(others)):
        if run.first <= first <= run.last:
            first = run.last + 1
    for run in reversed(runs):
        if run.first <= last <= run.last:
            last = run.first - 1
    return Loss(loss.engine, first, last, loss.reason, dict(+rows)) if first <= last else None


def told(losses: Iterable[tuple[Loss, Sequence[Numbers]]], tallies: Mapping[int, Tally]) -> list[Loss]:
    """Return what is left of the losses that were reported, now that all that is stored is known.

    Losses that are found by arithmetic are left out: they are found again, and what was missing there may be here.

    Args:
        losses: each with the numbers that who reports it has itself.
        tallies: the engines by number.
    """
    found = []
    for loss, own in losses:
        tally = tallies.get(-1 if loss.engine is None else loss.engine)
        if tally is None or tally.settled:
            found.append(loss)
        elif loss.reason not in FOUND and (kept := clip(loss, tally, own)):
            found.append(kept)
    return found


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
    return [f"{who(tally.engine)}: {IDLE_END}" for tally in tallies if tally.idle and _open_end(tally, known)]


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
    """Return each loss once, as a sealed trace keeps them: damaged bytes are one, whose engine nobody knows."""
    losses = [*reported, *found]
    placed = [loss for loss in losses if loss.engine is not None]
    return [*placed, Loss(None, 0, 0, CORRUPT, {})] if len(placed) < len(losses) else placed


def lost_tables(losses: Iterable[Loss], engine: int) -> set[str]:
    """Return the tables of an engine that have lost rows; all of them where nobody knows which.

    Of requests that were shed all rows are missing: where tables say the same of the others, they still must.
    """
    found: set[str] = set()
    for loss in losses:
        if loss.engine in (None, engine):
            found |= _OF_ALL_REQUESTS if loss.reason == SHED else set(loss.rows) or set(TABLES)
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
