"""`tracekit doctor`: prove a trace against itself."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tracekit.errors import UsageError


@click.command("doctor")
@click.argument("trace")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option(
    "--completions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What the client received (from `record --completions`), to be compared bit for bit.",
)
@click.option(
    "--live",
    metavar="URL|FILE",
    help="Compare with the engine's own counters: vLLM's /metrics, or a file of its text. TRACE may be being written.",
)
@click.option("--only", type=click.IntRange(min=0), metavar="N", help="Look at this engine of TRACE alone.")
@click.option("--daemon", metavar="ADDR", help="With --live, the daemon that writes TRACE: it is asked to write first.")
def command(
    trace: str, as_json: bool, completions: Path | None, live: str | None, only: int | None, daemon: str | None
) -> int:
    """Prove TRACE against itself: nothing missing that is not known to be, nothing that contradicts the rest.

    \b
    tracekit doctor trace.arrow
    tracekit doctor spool/ --live http://127.0.0.1:8000/metrics

    Exit codes: 0 sound, 1 violations, or nothing recorded that could be sound, 3 sound but data was lost.
    """
    from tracekit.audit.doctor.examine import examine
    from tracekit.audit.live.source import reader
    from tracekit.audit.live.watch import watch
    from tracekit.cli import sources
    from tracekit.report.doctor import to_lines
    from tracekit.trace.reader import Trace
    from tracekit.trace.redacted import refuse_redacted

    if live is None and daemon is not None:
        raise UsageError("--daemon goes with --live")
    if only is not None and completions is not None:
        raise UsageError("a completion does not say which engine made it: give either --completions or --only")

    def opened() -> Trace:
        return sources.opened(trace) if only is None else sources.opened(trace).only(only)

    if completions is not None:
        refuse_redacted(opened().engines(), "--completions")
    view = None if completions is None else sources.completions(completions)
    watched = None
    if live is not None:
        watched = watch(live, reader(live), opened, flush=sources.flusher(daemon, trace), engine=only)
    report = examine(opened(), view)
    facts = {**report.to_dict(), "live": None if watched is None else watched.to_dict()}
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(to_lines(facts, report.losses)))
    return (watched.exit_code if watched else 0) or report.exit_code
