"""HTML from plain values; whatever comes from a trace is inert in it."""

from __future__ import annotations

import html
import json
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

# format characters may turn text around or hide it (bidirectional overrides, zero width); controls do worse
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str) -> str:
    r"""Return the text with control, bidirectional and other unseen characters as escapes, such as \u202e."""
    return "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in _HIDDEN else c for c in text)


def esc(value: object) -> str:
    """Return a value as text that HTML shows and does not read."""
    return html.escape(visible(str(value)))


def paragraphs(lines: Iterable[str]) -> str:
    """Return one paragraph a line."""
    return "".join(f"<p>{esc(line.strip())}</p>" for line in lines if line.strip())


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], *, id: str = "") -> str:
    """Return a table; the first cell of a row is its head."""
    cells = "".join(f'<th scope="col">{esc(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{esc(row[0])}</th>' + "".join(f"<td>{esc(value)}</td>" for value in row[1:]) + "</tr>"
        for row in rows
    )
    name = f' id="{esc(id)}"' if id else ""
    return f"<table{name}><caption>{esc(caption)}</caption><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def chart(name: str, label: str) -> str:
    """Return the place of a picture, which is empty where scripts are off."""
    return f'<div class="chart" data-chart="{esc(name)}" role="img" aria-label="{esc(label)}"></div>'


def folded(summary: str, content: str) -> str:
    """Return what a click unfolds."""
    return f'<details><summary>{esc(summary)}</summary><div class="wide">{content}</div></details>'


def data_block(name: str, value: Any) -> str:
    """Return JSON that a script finds by its id, and that cannot end its element or be run."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{esc(name)}">{text}</script>'
