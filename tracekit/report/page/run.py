"""One replay as a part of a page: its head, its pictures, its screen, and the data that scripts draw from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tracekit.diagnose.plain import plain
from tracekit.diagnose.result import Result
from tracekit.report import text
from tracekit.report.page.figures import F8, I8, along, histogram, scatter
from tracekit.report.page.heat import heat_section
from tracekit.report.page.markup import data_block, esc, visible
from tracekit.report.page.pictures import (
    along_section,
    ratio_section,
    scatter_section,
    timeline_section,
    token_section,
)
from tracekit.report.page.steps import Timeline, lanes
from tracekit.report.page.summary import fixed, summary
from tracekit.report.page.tokens import SENTINEL, Columns, choose, packed, page_columns
from tracekit.scores import RAW

_ALONG = {
    "output index": "output_index",
    "position": "position",
    "weight version": "weight_version",
    "updates until the rollout ended": "lag",
    "requests in the engine step": "batch",
    "tokens after the cached prefix": "after_cached",
    "engine step": "engine_step",
}


@dataclass(frozen=True)
class Shown:
    """What is shown of one replay.

    Attributes:
        result: its result.
        tokens: columns of its tokens, as `tracekit.replay.output.SCHEMA` names them, [N] each.
        texts: of token ids, where a tokenizer was at hand.
        timeline: columns by table, as `tracekit.replay.timeline` says; empty where it is not known.
    """

    result: Result
    tokens: Columns
    texts: Mapping[int, str] = field(default_factory=dict)
    timeline: Timeline = field(default_factory=dict)


def run_part(shown: Shown, name: str = "", *, heading: int = 1) -> Iterator[str]:
    """Yield the part.

    Args:
        shown: the replay.
        name: what ids begin with, where a page has several runs.
        heading: level of the verdict's heading.
    """
    verdict, tokens = shown.result.verdict, shown.tokens
    columns = page_columns(tokens, _replayed(verdict.noise.semantic))
    d, beyond = tokens["d"].astype(np.float64), tokens["beyond_noise"]
    num_sentinels = int(np.count_nonzero(columns["flags"] & SENTINEL))
    after = verdict.semantic.lens if fixed(verdict) else ""
    before = d + (tokens[_replayed(verdict.expect)] - tokens[_replayed(verdict.noise.semantic)]) if after else None
    rollout = _rollout_of(tokens)
    starts = np.flatnonzero(np.r_[True, np.diff(rollout) != 0]) if rollout.size else np.zeros(0, dtype=np.int64)
    lengths = np.bincount(rollout, minlength=starts.size)
    prompt = tokens["position"][starts].astype(np.int64)
    values = {**columns, **_places(tokens, rollout, prompt, starts + lengths - 1)}
    alongs = [along(title, values[column].astype(np.int64), d, beyond, before) for title, column in _ALONG.items()]
    ratios, steps = histogram(d, before), lanes(shown.timeline, tokens, d)
    points = scatter(columns["recorded"].astype(np.float64), columns["replayed"].astype(np.float64), d, beyond)
    chosen = choose(rollout, beyond, d)
    rows = [
        {
            "engine": int(tokens["engine"][starts[i]]),
            "request": int(tokens["request"][starts[i]]),
            "start": int(prompt[i]),
            "count": int(lengths[i]),
        }
        for i in chosen.rollouts
    ]
    # what a token of median noise reaches in a clean run: a colour below it says nothing
    quiet = float(verdict.noise.threshold * np.median(tokens["sigma"])) if rollout.size else 0.0
    used = {int(i) for i in np.unique(columns["token_id"][chosen.rows])}
    data = {
        "rollouts": rows,
        "columns": packed(columns, chosen.rows),
        "texts": {str(i): visible(t) for i, t in shown.texts.items() if i in used},
        "epsilon": verdict.before.epsilon,
        "histogram": vars(ratios),
        "along": plain([vars(one) for one in alongs if len(one.rows) > 1]),
        "scatter": points,
        "semantic": verdict.noise.semantic,
        "after": after,
        "scale": max(_scale(d), quiet),
        "quiet": quiet,
        "lanes": steps,
        "events": _events(shown.timeline),
    }
    yield f'<article class="run" data-name="{esc(name)}">'
    yield from summary(shown.result, heading=heading)
    yield from timeline_section(steps, shown.timeline, name)
    yield '<div class="pair">'
    yield from ratio_section(ratios, num_sentinels, name, after)
    yield from scatter_section(points, name)
    yield "</div>"
    yield from along_section(alongs, name, after)
    yield from heat_section(verdict.modules)
    yield from token_section(chosen, int(chosen.rows.size), name)
    yield from _screen(shown.result, name)
    yield data_block(f"{name}data", data) + "</article>"


def _replayed(semantic: str) -> str:
    return "replay_raw_logprob" if semantic == RAW else "forced_logprob"


def _places(tokens: Columns, rollout: I8, prompt: I8, last: I8) -> dict[str, I8]:
    """[N] each: where a token is in its rollout, in the updates that its rollout saw, behind what was cached for it."""
    position, version = tokens["position"].astype(np.int64), tokens["weight_version"].astype(np.int64)
    cached = tokens["num_cached"].astype(np.int64)
    return {
        "position": position,
        "output_index": position - prompt[rollout],
        "lag": version[last][rollout] - version,
        "after_cached": np.where(cached > 0, position - cached, -1),
    }


def _events(timeline: Timeline) -> list[dict[str, Any]]:
    """What the timeline marks, without the calls that do nothing to the weights' numbers but their name."""
    if not timeline:
        return []
    names = ("engine", "engine_step", "kind", "weight_version", "text")
    rows = zip(*(timeline["events"][name].tolist() for name in names), strict=True)
    return [{name: visible(v) if isinstance(v, str) else v for name, v in zip(names, row, strict=True)} for row in rows]


def _rollout_of(tokens: Columns) -> I8:
    """[N] the number of each token's rollout, from 0."""
    change = (np.diff(tokens["engine"].astype(np.int64)) != 0) | (np.diff(tokens["request"].astype(np.int64)) != 0)
    numbers: I8 = np.r_[0, np.cumsum(change)].astype(np.int64)[: tokens["engine"].size]
    return numbers


def _scale(d: F8) -> float:
    """Nats at which colours end: of the 99th percentile of |d|."""
    size = np.abs(d[np.isfinite(d)])
    return max(float(np.quantile(size, 0.99)), 1e-6) if size.size else 1.0


def _screen(result: Result, name: str) -> Iterator[str]:
    """The whole screen of `tracekit replay`, to be searched, copied and printed."""
    yield f'<section id="{name}evidence"><h2>Evidence</h2><p>What <code>tracekit replay</code> prints, whole.</p>'
    for lines in map(list, text.sections(result)):
        if lines:
            yield f"<pre>{esc_lines(lines)}</pre>"
    yield "</section>"


def esc_lines(lines: list[str]) -> str:
    """Return lines that HTML shows and does not read."""
    return "\n".join(map(esc, lines))
