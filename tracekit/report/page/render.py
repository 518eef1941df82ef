"""The page of one replay."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping
from importlib import resources

import numpy as np

from tracekit.diagnose.result import Result
from tracekit.plural import plural
from tracekit.report import text
from tracekit.report.page.figures import F8, I8, TAIL, Along, Histogram, along, histogram, scatter
from tracekit.report.page.markup import data_block, esc, paragraphs, table, visible
from tracekit.report.page.tokens import Chosen, Columns, choose, packed, page_columns
from tracekit.scores import RAW

_ALONG = {
    "output index": "output_index",
    "position": "position",
    "weight version": "weight_version",
    "tokens in the engine step": "batch",
    "engine step": "engine_step",
}


def to_html(result: Result, tokens: Columns, texts: Mapping[int, str] | None = None) -> str:
    """Return a page that opens without a network: verdict, figures, and the tokens of the rollouts.

    Args:
        result: of the replay.
        tokens: columns of its tokens, as `tracekit.replay.output.SCHEMA` names them, [N] each.
        texts: of token ids, where a tokenizer was at hand.
    """
    verdict = result.verdict
    columns = page_columns(tokens, "replay_raw_logprob" if verdict.noise.semantic == RAW else "forced_logprob")
    d, beyond = tokens["d"].astype(np.float64), tokens["beyond_noise"]
    rollout = _rollout_of(tokens)
    starts = np.flatnonzero(np.r_[True, np.diff(rollout) != 0]) if rollout.size else np.zeros(0, dtype=np.int64)
    prompt = tokens["position"][starts].astype(np.int64)
    values = {**columns, "position": tokens["position"], "output_index": tokens["position"] - prompt[rollout]}
    chosen = choose(rollout, beyond, d)
    ratios = histogram(d)
    alongs = [along(name, values[column].astype(np.int64), d, beyond) for name, column in _ALONG.items()]
    lengths = np.bincount(rollout, minlength=starts.size)
    rows = [
        {
            "engine": int(tokens["engine"][starts[i]]),
            "request": int(tokens["request"][starts[i]]),
            "start": int(prompt[i]),
            "count": int(lengths[i]),
        }
        for i in chosen.rollouts
    ]
    used = {int(i) for i in np.unique(columns["token_id"][chosen.rows])}
    data = {
        "rollouts": rows,
        "columns": packed(columns, chosen.rows),
        "texts": {str(i): visible(t) for i, t in (texts or {}).items() if i in used},
        "epsilon": verdict.before.epsilon,
        "histogram": vars(ratios),
        "along": [vars(one) for one in alongs],
        "scatter": scatter(columns["recorded"].astype(np.float64), columns["replayed"].astype(np.float64), beyond),
        "semantic": verdict.noise.semantic,
        "scale": _scale(d),
    }
    body = "".join([*_verdict(result), *_histogram(ratios), *_scatter(), *_along(alongs), *_strips(chosen, rows)])
    return _document(esc(_title(result)), body + data_block("data", data))


def _rollout_of(tokens: Columns) -> I8:
    """[N] the number of each token's rollout, from 0."""
    change = (np.diff(tokens["engine"].astype(np.int64)) != 0) | (np.diff(tokens["request"].astype(np.int64)) != 0)
    numbers: I8 = np.r_[0, np.cumsum(change)].astype(np.int64)[: tokens["engine"].size]
    return numbers


def _scale(d: F8) -> float:
    """Nats at which colours end: of the 99th percentile of |d|."""
    size = np.abs(d[np.isfinite(d)])
    return max(float(np.quantile(size, 0.99)), 1e-6) if size.size else 1.0


def _title(result: Result) -> str:
    return next(text.headline(result.verdict))


def _verdict(result: Result) -> Iterator[str]:
    sections = [list(lines) for lines in text.sections(result)]
    first, *rest = sections
    yield f'<header><h1>{esc(first[0])}</h1>{paragraphs(first[1:])}</header><main><section id="evidence">'
    yield "<h2>Evidence</h2>"
    for lines in rest:
        if lines:
            yield f"<pre>{_inert(lines)}</pre>"
    yield "</section>"


def _inert(lines: list[str]) -> str:
    return "\n".join(map(esc, lines))


def _histogram(ratios: Histogram) -> Iterator[str]:
    total = sum(ratios.counts) + ratios.below + ratios.above
    left_out = f" {plural(ratios.not_finite, 'token')} without a finite value left out." if ratios.not_finite else ""
    yield '<section id="ratios"><h2>Ratios</h2>'
    yield (
        f"<p>{plural(total, 'token')} by their ratio, trainer over engine. The scale ends at the {TAIL:.1%} and "
        f"{1 - TAIL:.1%} quantiles: {ratios.below} lie below and {ratios.above} above.{left_out}</p>"
    )
    yield _chart("histogram", "Histogram of ratios; its table follows")
    yield (
        '<p class="live"><label>Clip range ± <input type="range" id="clip" min="0.01" max="1" step="0.01"> '
        '<output id="clip-value"></output></label> <span id="clip-says" aria-live="polite"></span></p>'
    )
    edges = [f"{np.exp(edge):.4g}" for edge in ratios.edges]
    rows = [(f"{a} to {b}", count) for a, b, count in zip(edges, edges[1:], ratios.counts, strict=False)]
    yield _folded("Ratios as a table", table("Tokens by ratio", ("ratio", "tokens"), rows))
    yield "</section>"


def _scatter() -> Iterator[str]:
    yield '<section id="scatter"><h2>Engine against trainer</h2>'
    yield "<p>Log-probabilities of the same tokens, recorded and replayed; orange is beyond noise.</p>"
    yield _chart("scatter", "Recorded against replayed log-probabilities")
    yield "</section>"


def _along(alongs: list[Along]) -> Iterator[str]:
    yield '<section id="along"><h2>Where it is off</h2>'
    yield "<p>Mean and 95th percentile of |d| along</p>"
    yield '<p class="live"><select id="along-by" aria-label="Along what">'
    yield "".join(f'<option value="{i}">{esc(one.name)}</option>' for i, one in enumerate(alongs))
    yield f"</select></p>{_chart('along', 'd along a quantity; tables follow')}"
    for one in alongs:
        rows = [
            (f"{a:,} to {b:,}" if a != b else f"{a:,}", f"{n:,}", f"{mean:+.5f}", f"{size:.5f}", f"{q:.5f}", hit)
            for a, b, n, mean, size, q, hit in one.rows
        ]
        head = (one.name, "tokens", "mean d", "mean |d|", "95 % of |d|", "beyond noise")
        yield _folded(f"By {one.name}", table(f"d by {one.name}, nats", head, rows))
    yield "</section>"


def _strips(chosen: Chosen, rows: list[dict[str, int]]) -> Iterator[str]:
    yield '<section id="strips"><h2>Tokens</h2>'
    if chosen.is_all:
        yield f"<p>All {plural(chosen.num_rollouts, 'rollout')} are in this page.</p>"
    else:
        held = sum(row["count"] for row in rows)
        yield (
            f"<p>This page holds {len(rows):,} of {plural(chosen.num_rollouts, 'rollout')} ({held:,} of "
            f"{chosen.num_tokens:,} tokens): half of them the worst, half spread evenly over the run.</p>"
        )
    yield '<div id="tokens" hidden></div>'
    yield "<noscript><p>The strips of single tokens need scripts; the rest reads without.</p></noscript></section>"


def _chart(name: str, label: str) -> str:
    return f'<div class="chart" data-chart="{name}" role="img" aria-label="{esc(label)}"></div>'


def _folded(summary: str, content: str) -> str:
    return f"<details><summary>{esc(summary)}</summary>{content}</details>"


def _document(title: str, body: str) -> str:
    assets = resources.files(__package__) / "assets"
    styles, scripts = (
        ["".join((assets / name).read_text(encoding="utf-8") for name in names)]
        for names in (("uPlot.min.css", "page.css"), ("uPlot.iife.min.js", "page.js"))
    )
    policy = f"default-src 'none'; style-src {_hashes(styles)}; script-src {_hashes(scripts)}; base-uri 'none'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{styles[0]}</style></head><body>{body}</main>"
        f"<script>{scripts[0]}</script></body></html>\n"
    )


def _hashes(texts: list[str]) -> str:
    """The sources that a Content-Security-Policy lets through: these texts and no other."""
    return " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts)
