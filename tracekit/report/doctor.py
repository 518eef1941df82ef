"""What `tracekit doctor` says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tracekit.plural import plural
from tracekit.report import live
from tracekit.report.nothing import nothing

SHOWN = 5  # examples of each finding


def to_lines(facts: Mapping[str, Any], losses: Iterable[object]) -> Iterator[str]:
    """Yield the lines for the terminal.

    Args:
        facts: `Report.to_dict` of the doctor, with `live`: those of the counters, or None.
        losses: what is missing, each with its text.
    """
    yield f"trace   {facts['path']}"
    yield f"rows    {', '.join(f'{name} {count:,}' for name, count in facts['rows'].items() if count) or 'none'}"
    if facts["completions"] is not None:
        yield f"client  {plural(facts['completions'], 'completion')} compared, bit for bit"
        yield from (f"        not compared: {text}" for text in facts["not_compared"])
    for title, key in (("VIOLATED", "violations"), ("explained by lost rows", "excused")):
        for found in facts[key]:
            yield ""
            yield from _finding(title, found)
    yield ""
    for loss in losses:
        yield f"lost: {loss}"
    yield from (f"note: {note}" for note in facts["notes"])
    if facts["violations"]:
        yield "NOT SOUND: the trace contradicts itself"
    elif facts["lacks"]:
        yield nothing(facts["lacks"])
    elif not facts["rows"]["tokens"]:
        yield "no token was recorded yet: there is nothing to judge"
    else:
        yield "sound: the trace agrees with itself"
    if facts["live"] is not None:
        yield from live.to_lines(facts["live"])


def _finding(title: str, found: Mapping[str, Any]) -> Iterator[str]:
    times = plural(found["count"], "time")
    yield f"{title}: {found['id']} in engine {found['engine']}, {times} ({found['severity']})"
    for example in found["examples"][:SHOWN]:
        yield f"  {_place(found['engine'], example)}"
    if found["count"] > SHOWN:
        yield f"  and {found['count'] - SHOWN:,} more"
    yield f"  why  {found['why']}"
    yield f"  do   {found['what_to_do']}"


def _place(engine: int, example: Mapping[str, Any]) -> str:
    request, step = example["request"], example["engine_step"]
    where = f"engine {engine}"
    where += f", request {request}" if request is not None else ""
    where += f", engine step {step}" if step is not None else ""
    return f"{where}: {example['text']}"
