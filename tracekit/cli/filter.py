"""`tracekit filter`: make a trace of a part of another."""

from __future__ import annotations

from pathlib import Path

import click

from tracekit.errors import UsageError


@click.command("filter")
@click.argument("trace")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The new trace.")
@click.option("--only", type=click.IntRange(min=0), multiple=True, metavar="N", help="Keep this engine; repeatable.")
@click.option("--requests", metavar="A:B", help="Keep the rows of requests A to B, both included.")
def command(trace: str, output: Path, only: tuple[int, ...], requests: str | None) -> int:
    """Write the engines and requests of TRACE that are asked for into a new one; TRACE stays as it is.

    The new trace says that it was filtered. Steps keep the numbers of their whole batch, of which `doctor` then finds a
    part missing. Exit code 3: written, but TRACE itself has lost data.
    """
    from tracekit.cli import sources
    from tracekit.trace.filter import keep_engines, keep_requests
    from tracekit.trace.output import check_output
    from tracekit.trace.seal import seal_trace

    if not only and requests is None:
        raise UsageError("say what to keep: --only N, or --requests A:B")
    first, _, last = (requests or "0:0").partition(":")
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise UsageError(f"--requests is A:B, two numbers, not {requests}")
    check_output(output)
    opened = sources.opened(trace)
    if only:
        keep_engines(opened, only)
    if requests is not None:
        keep_requests(opened, int(first), int(last))
    report = seal_trace(opened, output)
    return sources.sealed(report)
