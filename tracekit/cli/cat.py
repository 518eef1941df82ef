"""`tracekit cat`: print the rows of one table."""

from __future__ import annotations

import click

from tracekit.tables import TABLES


@click.command("cat")
@click.argument("trace")
@click.argument("table", type=click.Choice(list(TABLES)), metavar="TABLE")
@click.option("--head", type=click.IntRange(min=0), metavar="N", help="Print the first N rows only.")
@click.option("--json", "form", flag_value="json", default="json", help="One JSON object per line (the default).")
@click.option("--csv", "form", flag_value="csv", help="CSV with a header; lists as JSON.")
def command(trace: str, table: str, head: int | None, form: str) -> None:
    """Print the rows of TABLE in TRACE, in the order of request and position, or of engine step.

    Floats are printed with every digit of their value; a logprob that is not a finite number is printed as a string.
    """
    from tracekit.cli import sources
    from tracekit.report.rows import csv_line, json_line, no_rows

    whole = sources.opened(trace).table(table)
    rows = whole.slice(0, whole.num_rows if head is None else min(head, whole.num_rows))
    if form == "csv":
        click.echo(csv_line(rows.column_names))
    for batch in rows.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            click.echo(csv_line(row.values()) if form == "csv" else json_line(row))
    if not whole.num_rows:
        click.echo(no_rows(table), err=True)
