"""What `tracekit doctor --live` says of an engine's own counters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_MARKS = {"agrees": "  ", "violated": "! "}


def to_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines for the terminal.

    Args:
        facts: `LiveReport.to_dict`.
    """
    yield ""
    over = "" if facts["being_written"] else " (the trace is not being written any more)"
    yield f"counters of the engine, from {facts['source']}{over}"
    for engine in facts["engines"]:
        label = f', engine="{engine["label"]}" in the metrics' if engine["label"] else ""
        moving = "; the counters moved, so values lie between two readings" if engine["moving"] else ""
        yield f"engine {engine['engine']}{label}{moving}"
        for row in engine["compared"]:
            yield f"  {_compared(row)}"
        for name, why in engine["not_compared"].items():
            yield f"    {name:<24}not compared: {why}"


def _compared(row: Mapping[str, Any]) -> str:
    why = f"  ({row['why']})" if row["why"] else ""
    state = "" if row["state"] == "agrees" else f"  {row['state'].upper()}"
    trace, counter = _span(row["low"], row["high"]), _span(row["before"], row["after"])
    return f"{_MARKS.get(row['state'], '? ')}{row['name']:<24}trace {trace:<16}counter {counter}{state}{why}"


def _span(low: int, high: int | None) -> str:
    if high is None:
        return f"{low:,} or more"
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
