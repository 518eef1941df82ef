"""``tracekit cat``: print the rows of one table."""

import csv
import json
import math
import sys
from typing import Any

import click

from tracekit.tables import TABLES


@click.command("cat")
@click.argument("trace")
@click.argument("table", type=click.Choice(list(TABLES)))
@click.option("--head", type=click.IntRange(min=0), metavar="N", help="Print the first N rows only.")
@click.option("--json", "form", flag_value="json", default="json", help="One JSON object a line (the default).")
@click.option("--csv", "form", flag_value="csv", help="CSV with a header; lists as JSON.")
def command(trace: str, table: str, head: int | None, form: str) -> None:
    """Print the rows of TABLE in TRACE, in the order of request and position, or of engine step.

    Floats are printed with every digit of their value; a logprob that is no number is printed as a string.
    """
    from tracekit.trace.reader import open_trace

    rows = open_trace(trace).table(table).slice(0, head)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    if form == "csv":
        writer.writerow(rows.column_names)
    for batch in rows.to_batches(max_chunksize=4096):
        for row in batch.to_pylist():
            if form == "csv":
                writer.writerow([json.dumps(value) if isinstance(value, list) else value for value in row.values()])
            else:
                click.echo(json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False))


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
