"""Write the reference part of docs/trace-format.md from the comments of tracekit/tables.py: `make docs`.

With `--check`, write nothing and exit with 1 where the page is stale.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "tracekit" / "tables.py"
PAGE = ROOT / "docs" / "trace-format.md"
BEGIN = "<!-- made from tracekit/tables.py by `make docs`: edit its comments, not this part -->\n"

# what columns mean that need no comment where they mean just this
COMMON = {
    "engine": "the engine, as in `engines`",
    "request": "the request, as in `requests`",
    "position": "0-based over prompt and completion",
    "token_id": "the token",
    "engine_step": "the step, as in `steps`",
    "weight_version": "the version, as in `weights`",
}


def tables(source: str) -> dict[str, tuple[str, dict[str, tuple[str, str]]]]:
    """Return table -> (what a row is, column -> (type, meaning)), as the comments of `TABLES` say.

    A comment belongs to the line it ends; whole lines of comment before a column belong to that column.

    Raises:
        ValueError: a table or a column says nothing.
    """
    lines = source.splitlines()
    (value,) = (
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "TABLES"
    )
    assert isinstance(value, ast.Dict)
    found = {}
    for key, columns in zip(value.keys, value.values, strict=True):
        assert isinstance(key, ast.Constant) and isinstance(columns, ast.Dict)
        row = _comment(lines, columns.lineno)
        if not row.startswith("a row is "):
            raise ValueError(f"the table {key.value} does not say what a row is")
        meanings = {}
        for name, kind in zip(columns.keys, columns.values, strict=True):
            assert isinstance(name, ast.Constant) and isinstance(kind, ast.Constant)
            meaning = _comment(lines, kind.lineno) or COMMON.get(str(name.value), "")
            if not meaning:
                raise ValueError(f"the column {key.value}.{name.value} does not say what it holds")
            meanings[str(name.value)] = (str(kind.value), meaning)
        found[str(key.value)] = (row, meanings)
    return found


def _comment(lines: list[str], number: int) -> str:
    """Return the comment at the end of a line (1-based), with the whole lines of comment above it."""
    words = [lines[number - 1].partition("  # ")[2]]
    while lines[number - 2].lstrip().startswith("# "):
        number -= 1
        words.insert(0, lines[number - 1].strip().removeprefix("# "))
    return " ".join(word for word in words if word)


def reference(source: str) -> str:
    """Return the generated part of the page."""
    parts = [BEGIN]
    for name, (row, columns) in tables(source).items():
        parts += [f"\n### {name}\n\n{row[0].upper()}{row[1:]}.\n\n| column | type | meaning |\n|---|---|---|\n"]
        for column, (kind, meaning) in columns.items():
            cell = meaning.replace("|", "\\|")
            parts.append(f"| `{column}` | `{kind}` | {cell} |\n")
    return "".join(parts)


def main() -> int:
    """Write the page, or check it."""
    page = PAGE.read_text(encoding="utf-8")
    fresh = page.partition(BEGIN)[0] + reference(SOURCE.read_text(encoding="utf-8"))
    if "--check" not in sys.argv:
        PAGE.write_text(fresh, encoding="utf-8")
    elif page != fresh:
        print(f"{PAGE.relative_to(ROOT)} is stale: make docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
