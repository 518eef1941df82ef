"""``tracekit info``: say what a trace holds, and what it does not."""

import json
from typing import Any

import click

from tracekit.errors import EXIT_DATA_LOST


@click.command("info")
@click.argument("trace")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.pass_context
def command(ctx: click.Context, trace: str, as_json: bool) -> None:
    """Say what TRACE holds: engines, rows, positions, weight versions, and whether anything was lost.

    TRACE is a sealed file, a spool folder, a glob, or a trace that is still being written. Exit code 3: data was lost.
    """
    from tracekit.trace.reader import open_trace
    from tracekit.trace.summary import summarize

    facts = summarize(open_trace(trace))
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(as_text(facts)))
    ctx.exit(0 if facts["complete"] else EXIT_DATA_LOST)


def as_text(facts: dict[str, Any]) -> list[str]:
    """Return the lines for the terminal."""
    tokens = facts["rows"]["tokens"]
    size = f"{facts['bytes']:,} bytes"
    if tokens:
        size += f", {facts['bytes_per_token']:.2f} a token"
    form = facts["form"] + (", being written" if facts["live"] else "")
    lines = [
        f"trace            {facts['path']} ({form}, schema {facts['schema_version']})",
        f"size             {size}",
        f"tokens           {tokens:,} in {facts['rows']['requests']:,} requests" if tokens else "tokens           none",
    ]
    if tokens:
        first, last = facts["positions"]
        lines.append(f"positions        {first} to {last}")
        lines.append(f"weight versions  {_ranges(facts['weight_versions'])}")
    lines.append(f"rows             {', '.join(f'{name} {count:,}' for name, count in facts['rows'].items() if count)}")
    lines += ["", *_grid(["engine", "kind", "version", "logprobs", "requests", "tokens", "ended", "model"], facts)]
    lines.append("")
    if facts["complete"]:
        lines.append("complete: " + ("nothing lost so far" if facts["live"] else "nothing was lost"))
    else:
        lines.append("NOT COMPLETE, data was lost:")
        lines += [f"  {_loss(loss)}" for loss in facts["losses"]]
    return lines


def _grid(head: list[str], facts: dict[str, Any]) -> list[str]:
    if not facts["engines"]:
        return ["no engine was seen"]
    keys = ["engine", "kind", "engine_version", "logprobs_mode", "requests", "tokens", "ended", "model"]
    rows = [[_cell(engine.get(key, "?")) for key in keys] for engine in facts["engines"]]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(keys))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]
    ]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _loss(loss: dict[str, Any]) -> str:
    engine = "unknown engine" if loss["engine"] is None else f"engine {loss['engine']}"
    batches = ""
    if loss["from_seq"]:
        batches = f" batches {loss['from_seq']} to {loss['to_seq'] or '?'}"
    rows = ", ".join(f"{name} {count:,}" for name, count in loss["rows"].items()) or "rows unknown"
    return f"{engine}{batches}: {rows} ({loss['reason']})"


def _ranges(numbers: list[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)
