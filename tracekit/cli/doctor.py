"""``tracekit doctor``: prove a trace against itself."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracekit.errors import UsageError

if TYPE_CHECKING:
    from tracekit.audit.live.watch import LiveReport

SHOWN = 5  # examples of each finding in the text


@click.command("doctor")
@click.argument("trace")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
@click.option(
    "--completions",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What the client received (from `record --completions`), to be compared bit for bit.",
)
@click.option(
    "--live",
    metavar="URL|FILE",
    help="Compare with the engine's own counters: vLLM's /metrics, or a file of its text. TRACE may be being written.",
)
@click.option("--engine", type=click.IntRange(min=0), metavar="N", help="The engine of TRACE that --live is about.")
@click.option("--daemon", metavar="ADDR", help="With --live, the daemon that writes TRACE: it is asked to write first.")
def command(
    trace: str, as_json: bool, completions: Path | None, live: str | None, engine: int | None, daemon: str | None
) -> int:
    """Prove TRACE against itself: nothing missing that is not known to be, nothing that contradicts the rest.

    \b
    tracekit doctor trace.arrow
    tracekit doctor spool/ --live http://127.0.0.1:8000/metrics

    Exit codes: 0 sound, 1 violations, 3 sound but data was lost.
    """
    from tracekit.audit.doctor.examine import examine
    from tracekit.trace.reader import open_trace

    if live is None and (engine is not None or daemon is not None):
        raise UsageError("--engine and --daemon go with --live")
    view = None if completions is None else _read(completions)
    watched = None if live is None else _watch(trace, live, engine, daemon)
    report = examine(open_trace(trace), view)
    facts = {**report.to_dict(), "live": None if watched is None else watched.to_dict()}
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(as_text(facts)))
    return (watched.exit_code if watched else 0) or report.exit_code


def _watch(trace: str, live: str, engine: int | None, daemon: str | None) -> "LiveReport":
    from tracekit.audit.live.watch import watch
    from tracekit.cli.live import flusher, reader
    from tracekit.trace.reader import open_trace

    return watch(live, reader(live), lambda: open_trace(trace), flush=flusher(daemon, trace), engine=engine)


def _read(path: Path) -> list[dict[str, Any]]:
    from tracekit.jobs.rollout import read_view

    try:
        rows = read_view(path)
    except OSError as error:
        raise UsageError(f"the completions cannot be read: {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"the completions are not JSON lines: {path}") from error
    needed = {"request_id", "index", "prompt_token_ids", "token_ids"}
    if any(not isinstance(row, dict) or not needed <= set(row) for row in rows):
        raise UsageError(f"each line of the completions needs {', '.join(sorted(needed))}: {path}")
    return rows


def as_text(facts: dict[str, Any]) -> list[str]:
    """Return the lines for the terminal."""
    rows = ", ".join(f"{name} {count:,}" for name, count in facts["rows"].items() if count)
    lines = [f"trace   {facts['path']}", f"rows    {rows or 'none'}"]
    if facts["completions"] is not None:
        lines.append(f"client  {facts['completions']:,} completions compared, bit for bit")
    for title, key in (("VIOLATED", "violations"), ("explained by lost rows", "excused")):
        for found in facts[key]:
            lines += ["", f"{title}: {found['check']} in engine {found['engine']}, {found['count']:,} times"]
            lines += [f"  {_place(found['engine'], example)}" for example in found["examples"][:SHOWN]]
            if found["count"] > SHOWN:
                lines.append(f"  and {found['count'] - SHOWN:,} more")
    lines += [""]
    for loss in facts["losses"]:
        lost = ", ".join(f"{name} {count:,}" for name, count in loss["rows"].items()) or "rows unknown"
        lines.append(f"lost: {lost} ({loss['reason']})")
    lines.append("sound: the trace agrees with itself" if facts["sound"] else "NOT SOUND: the trace contradicts itself")
    if facts["live"] is not None:
        from tracekit.cli import live

        lines += live.as_text(facts["live"])
    return lines


def _place(engine: int, example: dict[str, Any]) -> str:
    request, step = example["request"], example["engine_step"]
    where = f"engine {engine}"
    where += f", request {request}" if request is not None else ""
    where += f", engine step {step}" if step is not None else ""
    return f"{where}: {example['text']}"
