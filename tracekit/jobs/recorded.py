"""Run a job and record it: into a trace of its own, or through a daemon that runs already."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

from tracekit.errors import EXIT_OK, NoteError
from tracekit.jobs.run import run_job, through_plugins
from tracekit.jobs.sidecar import Sidecar
from tracekit.rpc import note
from tracekit.rpc.address import socket_of


class Undelivered(NamedTuple):
    """Rows that a recorder could hand to nobody; `rows` is None where its note of them cannot be read."""

    path: Path
    rows: dict[str, int] | None
    reason: str


class Ended(NamedTuple):
    """How a recorded job ended, and what became of the recording."""

    code: int
    """The job's exit status; 128 + N where signal N ended it."""
    complete: bool
    """Whether nothing is known to be lost."""
    undelivered: list[Undelivered]
    """What nobody took, where the daemon is somebody else's."""


Beside = Callable[[str], AbstractContextManager[int | None]]
"""Is handed the daemon's address, and lasts as long as the job; gives where the job writes, None: as we do."""


def _nothing(_address: str) -> AbstractContextManager[int | None]:
    return nullcontext()


def into_trace(argv: list[str], environ: Mapping[str, str], output: Path, beside: Beside = _nothing) -> Ended:
    """Run `argv` beside a tracekitd of its own, which leaves the trace `output`, or none where no engine reported.

    Raises:
        UsageError: the command cannot be started.
        DaemonError: tracekitd did not start, or could not seal.
    """
    with Sidecar(output) as sidecar:
        with beside(sidecar.address) as terminal:
            code = run_job(argv, sidecar.environ(environ), terminal)
        return Ended(code, sidecar.stop() == EXIT_OK, [])


def through_daemon(argv: list[str], environ: Mapping[str, str], address: str, beside: Beside = _nothing) -> Ended:
    """Run `argv` with the daemon at `address`, whose trace is its own.

    Raises:
        UsageError: the command cannot be started.
    """
    if path := socket_of(address):
        address = f"unix:{path.absolute()}"  # the job may go elsewhere
    before = _notes(address)
    with beside(address) as terminal:
        code = run_job(argv, through_plugins({**environ, "TRACEKIT_DAEMON": address}), terminal)
    new = sorted(path for path, _ in _notes(address).items() - before.items())
    return Ended(code, not new, list(map(_read, new)))


def _notes(address: str) -> dict[Path, int]:
    """What recorders noted down for this daemon because nobody took it, and when; also of earlier jobs."""
    socket = socket_of(address)
    return {path: path.stat().st_mtime_ns for path in note.find(socket)} if socket else {}


def _read(path: Path) -> Undelivered:
    try:
        left = note.read(path)
    except NoteError:
        return Undelivered(path, None, "")
    return Undelivered(path, left.rows, left.reason)
