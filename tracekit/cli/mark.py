"""`tracekit mark`: label the weights that engines have now."""

from __future__ import annotations

import dataclasses
import json

import click

from tracekit.cli.numbers import Finite
from tracekit.errors import EXIT_FAILED, EXIT_OK, NotMarkedError


@click.command("mark")
@click.argument("address", metavar="ADDR")
@click.option("--label", required=True, help="Your name of these weights, such as step-120.")
@click.option("--checkpoint", metavar="PATH", help="Where they are stored; `tracekit replay` looks there.")
@click.option("--only", "engines", type=click.IntRange(min=0), multiple=True, metavar="N",
              help="Only this engine of the trace; may be repeated  [default: all that have not ended]")  # fmt: skip
@click.option("--timeout", type=Finite(min=0.1), default=10.0, show_default=True, metavar="SECS",
              help="How long engines may take to confirm.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(
    address: str, label: str, checkpoint: str | None, engines: tuple[int, ...], timeout: float, as_json: bool
) -> int:
    """Tell the daemon at ADDR that the weights now in the engines are LABEL.

    Each engine stamps the label with its own weight version; the command ends when that is on the disk. The label is
    your claim: nothing compares it with the weights. Exit codes: 0 every engine confirmed, 1 some did not.
    """
    from tracekit.report.mark import mark_line
    from tracekit.rpc.client import ControlClient

    with ControlClient(address, timeout) as client:
        failure = None
        try:
            marks = client.mark_weights(label, checkpoint, engines)
        except NotMarkedError as error:
            marks, failure = error.marks, error
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(mark) for mark in marks], indent=2))
    else:
        for mark in marks:
            click.echo(mark_line(mark.engine, mark.weight_version, mark.engine_step, mark.error))
    if failure is not None:
        click.echo(f"tracekit: error: {failure}", err=True)
    return EXIT_FAILED if failure else EXIT_OK
