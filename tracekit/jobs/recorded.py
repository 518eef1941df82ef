"""Run a job and record it: into a trace of its own, or through a daemon that runs already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tracekit.errors import NoteError, UsageError
from tracekit.jobs.run import run_job, through_plugins
from tracekit.jobs.sidecar import Sidecar
from tracekit.rpc import note


class Undelivered(NamedTuple):
    """Rows that a recorder could hand to nobody; `rows` is None where its note of them cannot be read."""

    path: Path
    rows: dict[str, int] | None
    reason: str


class Ended(NamedTuple):
    """How a recorded job ended: its exit status, the sealing's (of a trace of its own), and what nobody took."""

    code: int
    sealed: int
    undelivered: list[Undelivered]


def into_trace(argv: list[str], environ: Mapping[str, str], output: Path) -> Ended:
    """Run `argv` beside a tracekitd of its own, which leaves the trace `output`.

    Raises:
        UsageError: the command cannot be started; no trace is left.
        DaemonError: tracekitd did not start, or could not seal.
    """
    with Sidecar(output) as sidecar:
        try:
            code = run_job(argv, sidecar.environ(environ))
        except UsageError:  # it never ran: leave no empty trace in the way of the next try
            sidecar.stop()
            output.unlink()
            raise
        return Ended(code, sidecar.stop(), [])


def through_daemon(argv: list[str], environ: Mapping[str, str], address: str) -> Ended:
    """Run `argv` with the daemon at `address`, whose trace is its own.

    Raises:
        UsageError: the command cannot be started.
    """
    before = _notes(address)
    code = run_job(argv, through_plugins({**environ, "TRACEKIT_DAEMON": address}))
    new = sorted(path for path, _ in _notes(address).items() - before.items())
    return Ended(code, 0, list(map(_read, new)))


def _notes(address: str) -> dict[Path, int]:
    """What recorders noted down for this daemon because nobody took it, and when; also of earlier jobs."""
    folder = note.folder_of(address)
    return {path: path.stat().st_mtime_ns for path in note.find(folder)} if folder else {}


def _read(path: Path) -> Undelivered:
    try:
        left = note.read(path)
    except NoteError:
        return Undelivered(path, None, "")
    return Undelivered(path, left.rows, left.reason)
