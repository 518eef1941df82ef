"""A trace of a part of another: some engines, some requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from tracekit.tables import TABLES
from tracekit.trace.batch import BatchMeta, batch_of_structs, rows_of
from tracekit.trace.reader import Trace, load
from tracekit.trace.sources import Stored


@dataclass(frozen=True)
class _Some:
    """A batch of which the rows of some requests are kept."""

    stored: Stored
    first: int
    last: int
    meta: BatchMeta

    def load(self, tables: Any = None) -> pa.RecordBatch:
        """Read and verify the batch, then leave out what is not wanted."""
        batch = self.stored.load(tables)
        return batch_of_structs({name: self.rows(name, rows_of(batch, name)) for name in batch.schema.names})

    def rows(self, table: str, rows: pa.StructArray) -> pa.StructArray:
        """Return the rows of a table that are wanted."""
        if "request" not in TABLES[table]:
            return rows
        requests = rows.field("request").to_numpy()
        return rows.filter(pa.array((requests >= self.first) & (requests <= self.last)))


def keep_engines(trace: Trace, engines: Collection[int]) -> None:
    """Leave out all engines but these, and what is known of them; trainers stay.

    Raises:
        NoSuchEngineError: one is not in the trace.
    """
    trace.keep(engines)
    trace.incidents.append(f"filtered: engines {', '.join(map(str, sorted(engines)))}")


def keep_requests(trace: Trace, first: int, last: int) -> None:
    """Leave out the rows of all requests but those from `first` to `last`, and take them out of the counters."""
    some = []
    left_out: dict[int, Counter[str]] = {number: Counter() for number in trace.tallies}
    for stored, number in trace.stored:
        kept = _Some(stored, first, last, stored.meta)
        batch = load(stored, number)
        rows = {name: len(kept.rows(name, rows_of(batch, name))) for name in stored.meta.rows}
        if number in trace.tallies:
            left_out[number].update({name: count - rows[name] for name, count in stored.meta.rows.items()})
        meta = replace(stored.meta, rows={name: count for name, count in rows.items() if count})
        some.append((replace(kept, meta=meta), number))
    for number, counts in left_out.items():
        trace.leave_out(number, +counts)
    trace.stored = some  # type: ignore[assignment]
    trace.incidents.append(f"filtered: requests {first} to {last}")
