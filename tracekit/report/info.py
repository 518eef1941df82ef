"""What `tracekit info` says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tracekit.plural import plural
from tracekit.report.grid import grid
from tracekit.report.nothing import nothing

_COLUMNS = {  # fact about an engine -> its column's head
    "engine": "engine",
    "run": "run",  # where any engine has one
    "kind": "kind",
    "engine_version": "version",
    "logprobs_mode": "logprobs",
    "requests": "requests",
    "tokens": "tokens",
    "ended": "ended",
    "model": "model",
}


def to_lines(facts: Mapping[str, Any], losses: Iterable[object]) -> Iterator[str]:
    """Yield the lines for the terminal.

    Args:
        facts: as `trace.summary.summarize` returns them.
        losses: what is missing, each with its text.
    """
    tokens = facts["rows"]["tokens"]
    form = facts["form"] + (", being written" if facts["live"] else "")
    yield f"trace            {facts['path']} ({form}, schema {facts['schema_version']})"
    per_token = f", {facts['bytes_per_token']:.2f} per token" if tokens else ""
    yield f"size             {plural(facts['bytes'], 'byte')}{per_token}"
    yield f"tokens           {f'{tokens:,} in ' + plural(facts['rows']['requests'], 'request') if tokens else 'none'}"
    if tokens:
        first, last = facts["positions"]
        yield f"positions        {first} to {last}"
        yield f"weight versions  {_ranges(facts['weight_versions'])}"
    yield f"rows             {', '.join(f'{name} {count:,}' for name, count in facts['rows'].items() if count)}"
    yield ""
    named = any(engine.get("run") for engine in facts["engines"])
    columns = {key: head for key, head in _COLUMNS.items() if named or key != "run"}
    cells = [[_cell(engine.get(key, "?")) for key in columns] for engine in facts["engines"]]
    yield from grid([list(columns.values()), *cells]) if cells else ["no engine was seen"]
    yield ""
    yield from (f"note: {note}" for note in facts["notes"])
    if facts["lacks"]:
        yield nothing(facts["lacks"])
    if facts["complete"] and facts["lacks"]:
        return
    if facts["complete"]:
        yield "complete: " + ("nothing lost so far" if facts["live"] else "nothing was lost")
        return
    yield "NOT COMPLETE, data was lost:"
    yield from (f"  {loss}" for loss in losses)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _ranges(numbers: Iterable[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)
