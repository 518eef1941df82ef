"""The head of a page: the verdict in a sentence, its figures, its causes as cards, and what else was seen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tracekit.diagnose.data import NONE
from tracekit.diagnose.explanation import Explanation
from tracekit.diagnose.result import Result
from tracekit.diagnose.verdict import Verdict
from tracekit.plural import plural
from tracekit.report import text, words
from tracekit.report.causes.table import SAYINGS, change, proof, sentence
from tracekit.report.page.markup import esc

# what trainers log, its name here, format
_TILES = (
    ("ratio_mean", "mean ratio", ".4f"),
    ("mismatch_kl", "mismatch_kl, nats", ".5f"),
    ("clip_rate", "clip rate at ±{epsilon:g}", ".2%"),
    ("bit_equal", "bit-equal tokens", ".1%"),
)


def fixed(verdict: Verdict) -> bool:
    """Whether values were also compared under another reading than the trainer's."""
    return verdict.semantic.lens != verdict.expect and bool(verdict.semantic.hypotheses)


def summary(result: Result, *, heading: int = 1) -> Iterator[str]:
    """Yield the head.

    Args:
        result: of the replay.
        heading: level of the verdict's heading.
    """
    verdict, data, scoring = result.verdict, result.data, result.scoring
    tag = f"h{heading}"
    yield f'<header class="verdict {esc(result.outcome)}"><p class="pill">{esc(_pill(result))}</p>'
    yield f"<{tag}>{esc(next(text.headline(verdict)))}</{tag}>"
    if not verdict.causes:
        yield f'<p class="lead">{esc(words.cause(verdict))}</p>'
    what = f"{plural(data.num_tokens, 'token')} of {plural(data.num_rollouts, 'rollout')}"
    yield f'<p class="about">{what}, scored by {esc(scoring.model)} ({esc(scoring.dtype)} body, float32 head)</p>'
    yield f'<dl class="tiles">{"".join(_tiles(verdict))}</dl></header>'
    if verdict.causes:
        cards = "".join(_cause(found, verdict) for found in verdict.causes)
        yield f'<section class="causes" aria-label="Causes">{cards}</section>'
    yield from _list("Withheld", "withheld", (words.remark(verdict, one) for one in verdict.withheld))
    seen = [words.remark(verdict, one) for one in verdict.findings]
    if left := words.left(verdict):
        seen.insert(0, left)
    if verdict.layer != NONE:
        seen += [f"{noted.source} ({noted.id}, engine {noted.engine}): {noted.what}" for noted in verdict.noted]
    yield from _list("Also seen", "seen", seen)
    yield from _list(
        "Not tested, and how little is seen", "limits", (words.remark(verdict, one) for one in verdict.limits)
    )


def _pill(result: Result) -> str:
    return {"clean": "✓ clean", "withheld": "? withheld"}.get(result.outcome, f"▲ {result.verdict.layer}")


def _tiles(verdict: Verdict) -> Iterator[str]:
    for name, label, form in _TILES:
        value = f"<dd>{esc(_value(getattr(verdict.before, name), form))}</dd>"
        if fixed(verdict):
            after = _value(getattr(verdict.after, name), form)
            value += f'<dd class="after">→ {esc(after)} as {esc(verdict.semantic.lens)}</dd>'
        yield f"<div><dt>{esc(label.format(epsilon=verdict.before.epsilon))}</dt>{value}</div>"
    read = f'<dd class="after">as {esc(verdict.semantic.lens)}</dd>' if fixed(verdict) else ""
    share = f"{verdict.num_with_onset} of {len(verdict.rollouts)}"
    yield f"<div><dt>rollouts beyond noise</dt><dd>{esc(share)}</dd>{read}</div>"


def _value(value: float, form: str) -> str:
    return "–" if value != value else format(value, form)


def _cause(found: Explanation, verdict: Verdict) -> str:
    share = ""
    if found.share == found.share:
        share = f'<progress max="1" value="{min(max(found.share, 0), 1):.3f}">{found.share:.0%}</progress>'
    return (
        f'<article class="cause"><h3>{esc(SAYINGS[found.code].noun)}</h3><p>{esc(sentence(found, verdict))}</p>'
        f'<p class="change"><b>To change</b> {esc(change(found, verdict))}.</p>'
        f'<p class="proof">{share}{esc(proof(found))}</p></article>'
    )


def _list(title: str, kind: str, items: Iterable[str]) -> Iterator[str]:
    rows = "".join(f"<li>{esc(item)}</li>" for item in items)
    if rows:
        yield f'<section class="notes {kind}"><h3>{esc(title)}</h3><ul>{rows}</ul></section>'
