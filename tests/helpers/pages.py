"""README.md and docs/ as tests read them: code blocks, commands with their options, links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_WORD = re.compile(r"\btracekit ([a-z]+)(?: ([a-z]+))?|(?<![-\w])(--[a-z][a-z-]+)")


def blocks(text: str, language: str) -> list[str]:
    """Return the fenced code blocks of one language; "" for those without."""
    return [body for found, body in _FENCE.findall(text) if found == language]


def options(text: str, commands: set[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (command, word after it, option) for every option a page names.

    An option belongs to the command that was named last before it. In code it counts on lines that run tracekit only,
    up to the ` -- ` that ends its own options.
    """
    command, word = "", ""
    for line in _lines(text):
        for name, after, option in _WORD.findall(line):
            if option:
                yield command, word, option
            elif name in commands:
                command, word = name, after


def unknown_commands(text: str, commands: set[str]) -> list[str]:
    """Return what code blocks call tracekit with that is not a command."""
    code = "\n".join(blocks(text, ""))
    return [name for name in re.findall(r"^\S*\btracekit ([a-z]+)", code, re.MULTILINE) if name not in commands]


def _lines(text: str) -> Iterator[str]:
    in_code = False
    for line in text.splitlines():
        if line.startswith("```"):
            in_code = not in_code
        elif not in_code:
            # in prose, names of commands and options stand in backticks
            yield " ; ".join(re.findall(r"`([^`]+)`", line))
        elif re.match(r"\S*\btracekit ", line):
            yield line.partition(" -- ")[0]


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """Yield (file, anchor) for every link of a page into this repository."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            yield (page.parent / path if path else page), anchor


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_files(text: str) -> list[str]:
    """Return the paths in backticks, below the rooms of this repository, where nothing is."""
    named = re.findall(r"`((?:tracekit|daemon|tests|docs|examples|bench|scripts|proto)/[\w./-]*)`", text)
    return [path for path in named if not (ROOT / path).exists()]
