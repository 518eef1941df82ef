"""What commands say that write a trace, or its tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from tracekit.plural import plural

NOT_COMPLETE = "tracekit: the trace is not complete: `tracekit info` says what was lost"


def written_line(path: Path, num_rows: int) -> str:
    """Return the line about one file."""
    return f"{path}  {plural(num_rows, 'row')}"


def sealed_lines(path: Path, rows: Mapping[str, int], losses: Iterable[object]) -> Iterator[str]:
    """Yield the lines about a new trace: its rows by table, and what is missing."""
    counts = ", ".join(f"{table} {count:,}" for table, count in rows.items() if count and table != "losses")
    yield f"{path}: {counts or 'no rows'}"
    yield from (f"lost: {loss}" for loss in losses)
