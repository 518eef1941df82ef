"""Verdicts side by side, one column each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def side_by_side(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of the table.

    Args:
        results: by the title of its column, what `tracekit replay --json` prints.
    """
    verdicts = [result["verdict"] for result in results.values()]
    before = [verdict["before"] for verdict in verdicts]
    rows = [
        ("", *results),
        ("recorded logprobs are", *(verdict["semantic"]["kind"] for verdict in verdicts)),
        ("layer of mismatch", *(verdict["layer"] for verdict in verdicts)),
        ("since", *map(_since, verdicts)),
        ("mean ratio", *(_number(metrics["ratio_mean"], ".3f") for metrics in before)),
        ("mismatch_kl (nats)", *(_number(metrics["mismatch_kl"], ".4f") for metrics in before)),
        (f"clip rate (±{before[0]['epsilon']})", *(_number(metrics["clip_rate"], ".1%") for metrics in before)),
        ("bit-equal tokens", *(_number(metrics["bit_equal"], ".0%") for metrics in before)),
    ]
    width = max(len(row[1]) for row in rows)
    for title, first, second in rows:
        yield f"  {title:24}{first:{width + 3}}{second}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"  # of no token at all


def _since(verdict: Mapping[str, Any]) -> str:
    since = verdict["since"]
    if since is None:
        return "-"
    return f"rollout {verdict['since_rollout']}, position {since['position']}"
