"""The sections of a run's pictures: each begins with its sentence, and has its table where scripts are off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from tracekit.plural import plural
from tracekit.report.page.figures import TAIL, Along, Histogram
from tracekit.report.page.markup import chart, esc, folded, table
from tracekit.report.page.steps import Timeline, hits_by_version
from tracekit.report.page.tokens import Chosen

_KEY = {
    "d": "mean |d|",
    "prefill": "prompt tokens",
    "decode": "decoded tokens",
    "wait": "waiting",
    "out": "preempted",
    "hit": "cached, same weights",
    "stale": "cached, older weights",
    "version": "weight change",
}
_COLUMNS = {  # of the table of steps
    "num_prefill": "prompt tokens",
    "num_decode": "decoded",
    "num_requests": "requests",
    "num_waiting": "waiting",
    "kv_usage": "KV in use",
    "num_chunks": "chunks",
    "num_preempted": "preempted",
    "hits": "cached blocks",
    "stale": "of older weights",
    "weight_version": "version",
    "d": "mean |d|",
}


def timeline_section(lanes: Sequence[dict[str, Any]], timeline: Timeline, name: str) -> Iterator[str]:
    """Yield the engines' timeline; nothing where it is not known."""
    if not lanes:
        return
    steps = sum(timeline["steps"]["engine"] == lane["engine"] for lane in lanes).sum()
    parts = sum(len(lane["first"]) for lane in lanes)
    together = f" {plural(parts, 'column')} of several steps each." if parts < steps else ""
    events = timeline["events"]
    changes = int(np.count_nonzero(events["kind"] == "weights")) if len(events["kind"]) else 0
    out, stale, hits = (sum(sum(lane[key]) for lane in lanes) for key in ("num_preempted", "stale", "hits"))
    yield f'<section id="{name}timeline"><h2>What the engine did</h2>'
    yield (
        f"<p>{plural(int(steps), 'step')} of {plural(len(lanes), 'engine')}, over one axis.{together} "
        f"{plural(changes, 'weight change')}, {plural(out, 'preemption')}, {plural(hits, 'cached block')} found, "
        f"{stale:,} of them computed by older weights than the step's.</p>"
    )
    key = "".join(f'<span class="k-{kind}">{what}</span>' for kind, what in _KEY.items())
    yield f'<p class="key live" aria-hidden="true">{key}</p>'
    yield '<p class="live"><label class="engines">Engine <select data-engines></select></label></p>'
    yield chart("timeline", "Timeline of the engine; its tables follow")
    yield '<p class="says-step live" aria-live="polite"></p>'
    for lane in lanes:
        yield folded(f"Steps of engine {lane['engine']} as a table", _steps(lane))
    found = list(hits_by_version(timeline))
    if found:
        head = ("engine", "computed by version", "read under version", "blocks", "tokens")
        rows = [(e, v, r, f"{b:,}", f"{t:,}") for e, v, r, b, t in found]
        yield folded("Prefix-cache hits by weight version", table("What requests found computed", head, rows))
    if len(events["kind"]):
        yield folded("Weight changes and calls", _events(timeline))
    yield "</section>"


def _steps(lane: dict[str, Any]) -> str:
    form = {"kv_usage": "{:.0%}", "d": "{:.3g}"}
    rows = []
    for i, (first, last) in enumerate(zip(lane["first"], lane["last"], strict=True)):
        cells = ("–" if lane[name][i] is None else form.get(name, "{:,}").format(lane[name][i]) for name in _COLUMNS)
        rows.append((f"{first:,}" if first == last else f"{first:,} to {last:,}", *cells))
    return table(f"Engine {lane['engine']}", ("steps", *_COLUMNS.values()), rows)


def _events(timeline: Timeline) -> str:
    events = timeline["events"]
    rows = [
        (f"{step:,}", engine, kind, "–" if version < 0 else version, text, f"{(end - begin) / 1e6:,.1f}")
        for engine, step, begin, end, kind, version, text in zip(*events.values(), strict=True)
    ]
    return table("In order of engine and step", ("step", "engine", "what", "version", "call", "ms"), rows)


def ratio_section(ratios: Histogram, num_sentinels: int, name: str, after: str) -> Iterator[str]:
    """Yield the histogram of ratios.

    Args:
        ratios: of the run.
        num_sentinels: of the tokens in no bin.
        name: what ids begin with.
        after: the reading that d is taken under, empty where it is the trainer's own.
    """
    total = sum(ratios.counts) + ratios.below + ratios.above
    counts = {"without a finite value": ratios.not_finite - num_sentinels, "with a sentinel": num_sentinels}
    left_out = "".join(f" {plural(n, 'token')} {what} left out." for what, n in counts.items() if n)
    fix = f" Grey: as the trainer takes them; blue: read as {after}." if after else ""
    yield f'<section id="{name}ratios"><h2>Ratios</h2>'
    yield (
        f"<p>{plural(total, 'token')} by their ratio, trainer over engine. The scale ends at the {TAIL:.1%} and "
        f"{1 - TAIL:.1%} quantiles: {ratios.below} lie below and {ratios.above} above.{left_out}{esc(fix)}</p>"
    )
    yield chart("histogram", "Histogram of ratios; its table follows")
    yield (
        f'<p class="live"><label>Clip range ± <input type="range" id="{name}clip" min="0.01" max="1" step="0.01"> '
        f'<output id="{name}clip-value"></output></label> <span id="{name}clip-says" aria-live="polite"></span></p>'
    )
    edges = [f"{np.exp(edge):.4g}" for edge in ratios.edges]
    bins = [f"{a} to {b}" for a, b in pairwise(edges)]
    head: tuple[str, ...] = ("ratio", "tokens")
    columns: list[list[Any]] = [bins, ratios.counts]
    if ratios.before:
        head, columns = ("ratio", f"tokens, read as {after}", "as the trainer takes them"), [*columns, ratios.before]
    yield folded("Ratios as a table", table("Tokens by ratio", head, zip(*columns, strict=True)))
    yield "</section>"


def scatter_section(points: dict[str, Any], name: str) -> Iterator[str]:
    """Yield recorded against replayed values."""
    off = f" {plural(points['num_off'], 'token')} below {points['low']:.3g} not drawn." if points["num_off"] else ""
    yield f'<section id="{name}scatter"><h2>Engine against trainer</h2>'
    yield f"<p>Log-probabilities of the same tokens, recorded and replayed; orange is beyond noise.{off}</p>"
    yield chart("scatter", "Recorded against replayed log-probabilities")
    yield "</section>"


def along_section(alongs: Sequence[Along], name: str, after: str) -> Iterator[str]:
    """Yield how far off tokens are along each quantity that is not the same for all."""
    shown = [one for one in alongs if len(one.rows) > 1]
    same = [f"{one.name}: {one.rows[0][0]:,}" for one in alongs if len(one.rows) == 1]
    yield f'<section id="{name}along"><h2>Where it is off</h2>'
    yield "<p>Mean and 95th percentile of |d| along what tokens differ in. Parts hold about as many tokens each.</p>"
    if same:
        yield f"<p>The same for all tokens: {esc('; '.join(same))}.</p>"
    yield f'<p class="live"><select id="{name}along-by" aria-label="Along what">'
    yield "".join(f'<option value="{i}">{esc(one.name)}</option>' for i, one in enumerate(shown))
    yield f"</select></p>{chart('along', 'd along a quantity; tables follow')}"
    for one in shown:
        rows = [
            (f"{a:,} to {b:,}" if a != b else f"{a:,}", f"{n:,}", f"{mean:+.5f}", f"{size:.5f}", f"{q:.5f}", hit)
            + ((f"{before:.5f}",) if after else ())
            for a, b, n, mean, size, q, hit, before in one.rows
        ]
        head = (one.name, "tokens", "mean d", "mean |d|", "95 % of |d|", "beyond noise")
        yield folded(
            f"By {one.name}", table(f"d by {one.name}, nats", head + (("mean |d| before",) if after else ()), rows)
        )
    yield "</section>"


def token_section(chosen: Chosen, num_held: int, name: str) -> Iterator[str]:
    """Yield the place of the strips of single tokens."""
    yield f'<section id="{name}strips"><h2>Tokens</h2>'
    if chosen.is_all:
        yield f"<p>All {plural(chosen.num_rollouts, 'rollout')} are in this page.</p>"
    else:
        yield (
            f"<p>This page holds {chosen.rollouts.size:,} of {plural(chosen.num_rollouts, 'rollout')} ({num_held:,} of "
            f"{chosen.num_tokens:,} tokens): half of them the worst, half spread evenly over the run.</p>"
        )
    yield f'<div id="{name}tokens" hidden></div>'
    yield "<noscript><p>The strips of single tokens need scripts; the rest reads without.</p></noscript></section>"
