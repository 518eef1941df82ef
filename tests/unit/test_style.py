"""One way to write a name in a docstring, and one place that says what is public."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [path for room in ("tracekit", "daemon") for path in sorted((ROOT / room).rglob("*.py"))]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_names_stand_in_single_backticks(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [number for number, line in enumerate(lines, 1) if "``" in line.replace("```", "")]


def test_only_the_public_face_says_what_is_public() -> None:
    listing = [
        relative(path)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id == "__all__"
    ]
    assert set(listing) <= {"tracekit/__init__.py"}
