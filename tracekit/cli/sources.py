"""What commands read: a trace, and what `tracekit doctor` compares it with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracekit.errors import EXIT_DATA_LOST, EXIT_OK, DaemonError, TracekitError, UsageError
from tracekit.plain import plain

if TYPE_CHECKING:
    from tracekit.trace.reader import Trace
    from tracekit.trace.seal import SealReport

_NEEDED = {"request_id", "index", "prompt_token_ids", "token_ids"}


def opened(trace: str) -> Trace:
    """Open a trace, which may lie in an object store; see `tracekit.trace.reader.open_trace`."""
    from tracekit.trace.reader import open_trace

    return open_trace(trace, say=say)


def say(line: str) -> None:
    """Tell the user, aside from the results."""
    click.echo(plain(line), err=True)


def sealed(report: SealReport) -> int:
    """Say what a new trace holds and what is lost of it, and return the exit code."""
    from tracekit.report.export import sealed_lines

    for line in sealed_lines(report.path, report.rows, report.losses):
        say(line)
    return EXIT_OK if report.complete else EXIT_DATA_LOST


def completions(path: Path) -> list[dict[str, Any]]:
    """Read what the client received, as `record --completions` writes it.

    Raises:
        UsageError: the file cannot be read, holds nothing, or something else.
    """
    from tracekit.jobs.rollout import read_view

    try:
        rows = read_view(path)
    except OSError as error:
        raise UsageError(f"the completions cannot be read: {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"the completions are not JSON lines: {path}") from error
    if not rows:
        raise UsageError(f"the completions are none: {path} is empty")
    if any(not isinstance(row, dict) or not set(row) >= _NEEDED for row in rows):
        raise UsageError(f"each line of the completions needs {', '.join(sorted(_NEEDED))}: {path}")
    return rows


def flusher(address: str | None, trace: str) -> Callable[[], None]:
    """Return what asks the daemon at `address` to write what it has; without an address it does nothing.

    Raises:
        DaemonError: nobody answers there, or it writes another spool.
    """
    if address is None:
        return lambda: None
    from tracekit.rpc.client import ControlClient

    client = ControlClient(address)
    spool = Path(client.describe().spool)
    if not Path(trace).exists() or not spool.samefile(trace):
        raise DaemonError(f"the daemon at {address} writes another spool than {trace}: {spool}")

    def flush() -> None:
        try:
            client.flush()
        except TracekitError:
            pass  # it may end while we look; what is on the disk is compared

    return flush
