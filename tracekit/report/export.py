"""What `tracekit export` says."""

from __future__ import annotations

from pathlib import Path

from tracekit.plural import plural

NOT_COMPLETE = "tracekit: the trace is not complete: `tracekit info` says what was lost"


def written_line(path: Path, num_rows: int) -> str:
    """Return the line about one file."""
    return f"{path}  {plural(num_rows, 'row')}"
