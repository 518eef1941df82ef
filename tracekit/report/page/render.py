"""A page: one document that opens without a network, with one replay or with two side by side."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources

from tracekit.report import text
from tracekit.report.page.markup import esc
from tracekit.report.page.run import Shown, esc_lines, run_part

_STYLES = ("uPlot.min.css", "page.css")
_SCRIPTS = ("uPlot.iife.min.js", "base.js", "charts.js", "timeline.js", "strips.js", "page.js")
_PARTS = {"timeline": "Engine", "ratios": "Ratios", "along": "Where", "strips": "Tokens", "evidence": "Evidence"}


def to_html(shown: Shown) -> str:
    """Return the page of one replay."""
    parts = {name: title for name, title in _PARTS.items() if name != "timeline" or shown.timeline}
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title in parts.items())
    body = f"{_top(f'<nav>{links}</nav>')}<main>{''.join(run_part(shown))}</main>"
    return _document(esc(next(text.headline(shown.result.verdict))), body)


def to_html_pair(title: str, lines: Sequence[str], runs: Mapping[str, Shown]) -> str:
    """Return a page with a column for each run.

    Args:
        title: of the page.
        lines: what was found between the two, as a screen.
        runs: by the title of its column; none where nothing was replayed.
    """
    columns = "".join(
        f'<section class="column"><h2 class="of">{esc(name)}</h2>{"".join(part)}</section>'
        for name, part in (
            (name, run_part(shown, f"run{i}-", heading=3)) for i, (name, shown) in enumerate(runs.items())
        )
    )
    between = f'<header class="verdict"><h1>{esc(title)}</h1><pre id="between">{esc_lines(list(lines))}</pre></header>'
    return _document(esc(title), f'{_top("")}<main class="two">{between}<div class="columns">{columns}</div></main>')


def _top(links: str) -> str:
    return f'<div class="top"><span class="mark">trace<b>kit</b></span>{links}</div>'


def _document(title: str, body: str) -> str:
    assets = resources.files(__package__) / "assets"
    style, script = (
        "".join((assets / name).read_text(encoding="utf-8") for name in names) for names in (_STYLES, _SCRIPTS)
    )
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{style}</style></head><body>{body}"
        f"<script>{script}</script></body></html>\n"
    )


def _hash(content: str) -> str:
    """The source that a Content-Security-Policy lets through: this text and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
