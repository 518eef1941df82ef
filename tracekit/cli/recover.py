"""`tracekit recover`: save what is good of a damaged trace."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("recover")
@click.argument("trace")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The new trace.")
def command(trace: str, output: Path) -> int:
    """Write every batch of TRACE that proves itself into a new one; TRACE stays as it is.

    TRACE is a sealed file, a spool folder, or a segment of one. Exit code 3: written, but something is lost.
    """
    from tracekit.cli import sources
    from tracekit.trace.recover import recover

    report = recover(trace, output)
    return sources.sealed(report)
