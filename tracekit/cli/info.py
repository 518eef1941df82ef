"""`tracekit info`: say what a trace holds, and what it does not."""

from __future__ import annotations

import json

import click

from tracekit.errors import EXIT_DATA_LOST, EXIT_FAILED, EXIT_OK


@click.command("info")
@click.argument("trace")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(trace: str, as_json: bool) -> int:
    """Say what TRACE holds: engines, rows, positions, weight versions, and whether anything was lost.

    TRACE is a sealed file, a spool folder, a glob, or a trace that is still being written. Exit codes: 1 nothing in
    it can be judged (no engine, no token, or no finished request), 3 data was lost.
    """
    from tracekit.cli import sources
    from tracekit.report.info import to_lines
    from tracekit.trace.summary import summarize

    opened = sources.opened(trace)
    facts = summarize(opened)
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(to_lines(facts, opened.all_losses())))
    if facts["lacks"]:
        return EXIT_FAILED
    return EXIT_OK if facts["complete"] else EXIT_DATA_LOST
