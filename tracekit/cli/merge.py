"""`tracekit merge`: make one trace of several."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("merge")
@click.argument("traces", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The new trace.")
def command(traces: tuple[str, ...], output: Path) -> int:
    """Write all of TRACES into a new one; they stay as they are.

    What one of them lacks of an engine and another has is not lost. Exit code 3: written, but something is lost.
    """
    from tracekit.cli import sources
    from tracekit.trace.output import check_output
    from tracekit.trace.reader import open_traces
    from tracekit.trace.seal import seal_trace

    check_output(output)
    report = seal_trace(open_traces(traces, say=sources.say), output)
    return sources.sealed(report)
