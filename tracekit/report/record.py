"""What `tracekit record` says: what it took by default, and what became of the recording."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tracekit.plural import plural

NOBODY_REPORTED = (
    "the job ended and no engine reported, so there is no trace: "
    "is tracekit installed in the job's environment, and does it use vLLM?"
)

KILLED = ", as when the machine is out of memory"


def defaults_line(taken: Mapping[str, Any]) -> str:
    """Return the line that names the options which were left out, each with what was taken for it.

    Args:
        taken: option -> its value, or the KEY=VALUE fields of an option that may be repeated.
    """
    parts = [f"{option} {_fields(value) if isinstance(value, dict) else value}" for option, value in taken.items()]
    return f"tracekit: taken by default: {', '.join(parts)}"


def _fields(settings: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
    )


def job_ended_line(code: int, nothing: bool) -> str:
    """Return the line about a job that failed.

    Args:
        code: its exit status, which is 128 + N where signal N ended it.
        nothing: whether no engine had reported, so that there is no trace.
    """
    try:
        ended_by = f" ({signal.Signals(code - 128).name}{KILLED if code - 128 == signal.SIGKILL else ''})"
    except ValueError:
        ended_by = ""
    no_trace = " before any engine reported, so there is no trace" if nothing else ""
    return f"tracekit: the job ended with exit status {code}{ended_by}{no_trace}"


def recorded_line(path: Path, num_tokens: int, num_requests: int, num_engines: int) -> str:
    """Return the line about a trace that was written."""
    counts = (plural(num_tokens, "token"), plural(num_requests, "request"), plural(num_engines, "engine"))
    return f"{path}: {', '.join(counts)}"


def lost_lines(losses: Iterable[object]) -> Iterator[str]:
    """Yield a line per loss of a trace (`Trace.all_losses`), which has its own text."""
    for loss in losses:
        yield f"tracekit: lost: {loss}"


def note_lines(notes: Iterable[str]) -> Iterator[str]:
    """Yield a line per note of a trace (`Trace.notes`)."""
    for note in notes:
        yield f"tracekit: note: {note}"


def still_running_line(pid: int) -> str:
    """Return the line about an engine process that outlived the job."""
    return f"tracekit: the job's engine process {pid} still runs, and is not recorded any more: kill {pid} ends it"


def undelivered_line(path: Path, rows: Mapping[str, int] | None, reason: str) -> str:
    """Return the line about a recorder's note of rows that nobody took; `rows` is None where it cannot be read."""
    if rows is None:
        return f"tracekit: rows were not delivered, but this note of them cannot be read: {path}"
    return f"tracekit: not delivered: {', '.join(f'{n} {table}' for table, n in sorted(rows.items()))} ({reason})"
