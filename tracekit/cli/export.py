"""`tracekit export`: write the tables of a trace in other formats."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tracekit.errors import EXIT_DATA_LOST, OutputError
from tracekit.tables import TABLES


@click.command("export")
@click.argument("trace")
@click.option("--parquet", "folder", required=True, metavar="DIR", help="A new (or empty) folder: one file per table.")
@click.pass_context
def command(ctx: click.Context, trace: str, folder: str) -> None:
    """Write every table of TRACE as DIR/TABLE.parquet. Exit code 3: written, but TRACE itself has lost data."""
    import pyarrow.parquet as pq

    from tracekit.cli import sources
    from tracekit.report.export import NOT_COMPLETE, written_line
    from tracekit.report.nothing import nothing
    from tracekit.trace.lacking import lacking
    from tracekit.trace.output import new_file

    opened = sources.opened(trace)
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise OutputError(f"the folder is not empty, and nothing is overwritten: {target}")
    except OSError as error:
        raise OutputError(f"cannot write into {target}: {error.strerror}") from None
    label = "writing" if sys.stderr.isatty() else None
    with click.progressbar(list(TABLES), label=label, file=sys.stderr) as names:
        for name in names:
            rows = opened.table(name)
            with new_file(target / f"{name}.parquet") as file:
                pq.write_table(rows, file, compression="zstd")
            click.echo(written_line(target / f"{name}.parquet", rows.num_rows))
    if lacks := lacking(opened):
        click.echo(nothing(lacks), err=True)
    if not opened.complete:
        click.echo(NOT_COMPLETE, err=True)
        ctx.exit(EXIT_DATA_LOST)
