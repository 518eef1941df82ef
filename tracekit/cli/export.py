"""`tracekit export`: write the tables of a trace in other formats."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from tracekit.errors import EXIT_DATA_LOST, OutputError, UsageError
from tracekit.tables import TABLES


@click.command("export")
@click.argument("trace")
@click.option("--parquet", metavar="DIR", help="A new (or empty) folder: one file per table.")
@click.option("--jsonl", metavar="DIR", help="The same as JSON lines, as `cat` prints them.")
@click.option("--zstd", is_flag=True, help="With --jsonl: compressed, TABLE.jsonl.zst.")
@click.pass_context
def command(ctx: click.Context, trace: str, parquet: str | None, jsonl: str | None, zstd: bool) -> None:
    """Write every table of TRACE as DIR/TABLE.parquet, or as DIR/TABLE.jsonl.

    Exit code 3: written, but TRACE itself has lost data.
    """
    from tracekit.cli import sources
    from tracekit.report.export import NOT_COMPLETE, written_line
    from tracekit.report.nothing import nothing
    from tracekit.report.rows import json_line
    from tracekit.trace.export import write_jsonl, write_parquet
    from tracekit.trace.lacking import lacking
    from tracekit.trace.output import new_file

    if (parquet is None) == (jsonl is None):
        raise UsageError("say where to: --parquet DIR, or --jsonl DIR")
    if zstd and jsonl is None:
        raise UsageError("--zstd goes with --jsonl; Parquet is compressed anyway")
    opened = sources.opened(trace)
    target = Path(parquet or jsonl or "")
    try:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise OutputError(f"the folder is not empty, and nothing is overwritten: {target}")
    except OSError as error:
        raise OutputError(f"cannot write into {target}: {error.strerror}") from None
    label = "writing" if sys.stderr.isatty() else None
    ending = "parquet" if parquet else "jsonl.zst" if zstd else "jsonl"
    with click.progressbar(list(TABLES), label=label, file=sys.stderr) as names:
        for name in names:
            rows = opened.table(name)
            with new_file(target / f"{name}.{ending}") as file:
                write_parquet(rows, file) if parquet else write_jsonl(rows, file, json_line, zstd)
            click.echo(written_line(target / f"{name}.{ending}", rows.num_rows))
    if lacks := lacking(opened):
        click.echo(nothing(lacks), err=True)
    if not opened.complete:
        click.echo(NOT_COMPLETE, err=True)
        ctx.exit(EXIT_DATA_LOST)
