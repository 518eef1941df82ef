"""The import directions of the design: nobody imports upward or in a circle, and nothing heavy comes along unasked.

The first half reads the syntax of every module (imports inside functions and for type checkers too); the second imports
each package in a fresh interpreter and looks at what came with it.
"""

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.imports import circles, import_graph, upward

SOURCES = [Path(importlib.import_module(name).__path__[0]) for name in ("tracekit", "tracekitd")]
EVERYBODY = {"cache", "errors", "join", "plain", "plural", "tables"}  # rooms that all others may import

# room -> the rooms that it may import, beside its own and those of EVERYBODY
DIRECTIONS: dict[str, set[str]] = {
    "cache": set(),
    "errors": set(),
    "join": set(),
    "plain": set(),
    "plural": set(),
    "tables": set(),
    "objects": set(),
    "trace": {"objects"},
    "rpc": set(),
    "recorder": {"rpc"},
    "engines": set(),
    "demo": {"engines"},
    "client": {"rpc", "recorder"},
    "jobs": {"rpc", "engines", "recorder"},
    "scores": set(),
    "diagnose": {"scores"},
    "scoring": {"scores"},
    "trainer": set(),
    "replay": {"engines", "objects", "trace", "scoring", "trainer", "diagnose", "scores", "audit"},
    "audit": {"trace"},
    "report": {"diagnose", "scores"},
    "tracekitd": {"objects", "trace", "rpc"},
}
DIRECTIONS["cli"] = {*DIRECTIONS, "tracekit"}
DIRECTIONS["tracekit"] = {*DIRECTIONS}  # the public face
DIRECTIONS["__main__"] = {"cli"}


def test_nobody_imports_upward() -> None:
    assert upward(import_graph(SOURCES), DIRECTIONS, EVERYBODY) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(import_graph(SOURCES)) == []


def tree(folder: Path, files: dict[str, str]) -> list[Path]:
    """A package `tracekit` of the given modules, each with the packages above it."""
    for name, text in files.items():
        path = folder / "tracekit" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for path in [folder / "tracekit", *(p for p in (folder / "tracekit").rglob("*") if p.is_dir())]:
        (path / "__init__.py").touch()
    return [folder / "tracekit"]


@pytest.mark.parametrize(
    "text",
    [
        "import tracekit.replay.runner",
        "import tracekit.replay.runner as runner",
        "from tracekit.replay import runner",
        "from tracekit.replay.runner import replay",
        "from ..replay import runner",
        "from ..replay.runner import replay as r",
        "def f():\n    from tracekit.replay import runner",
        "class C:\n    def f(self):\n        import tracekit.replay.runner",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from tracekit.replay import runner",
        "import importlib\nimportlib.import_module('tracekit.replay.runner')",
    ],
)
def test_a_planted_upward_import_is_found(text: str, tmp_path: Path) -> None:
    roots = tree(
        tmp_path, {"trace/reader.py": text, "replay/runner.py": "from tracekit.errors import X", "errors.py": ""}
    )
    (found,) = upward(import_graph(roots), DIRECTIONS, EVERYBODY)
    assert found.startswith("tracekit.trace.reader:") and found.endswith("imports tracekit.replay.runner")


def test_a_planted_circle_is_found(tmp_path: Path) -> None:
    files = {
        "trace/a.py": "from tracekit.trace import b",
        "trace/b.py": "def f():\n    from . import c",
        "trace/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tracekit.trace.a as a",
        "trace/d.py": "from tracekit.trace.a import f\nfrom tracekit.trace import e",
        "trace/e.py": "import tracekit.trace.c",
    }
    graph = import_graph(tree(tmp_path, files))
    assert circles(graph) == [["tracekit.trace.a", "tracekit.trace.b", "tracekit.trace.c"]]
    assert upward(graph, DIRECTIONS, EVERYBODY) == []


def test_a_room_that_the_table_does_not_know_is_an_error(tmp_path: Path) -> None:
    roots = tree(tmp_path, {"attic/a.py": "from tracekit import errors", "errors.py": ""})
    with pytest.raises(KeyError, match="attic"):
        upward(import_graph(roots), DIRECTIONS, EVERYBODY)


HEAVY = {"torch", "transformers", "vllm", "click", "pyarrow", "grpc", "google.protobuf", "numpy"}
ROOMS = "objects trace rpc recorder client engines demo jobs scoring trainer replay diagnose audit report cli".split()
OURS = {f"tracekit.{name}" for name in ROOMS} | {"tracekitd"}

# package -> what it may import beside the standard library, tracekit.errors and tracekit.tables
ALLOWED = {
    "tracekit": set(),
    "tracekit.objects": {"pyarrow", "numpy"},
    "tracekit.trace": {"tracekit.objects", "pyarrow", "numpy"},
    "tracekit.rpc": {"grpc", "google.protobuf", "numpy"},
    "tracekit.recorder": {"tracekit.rpc", "grpc", "google.protobuf", "numpy"},
    "tracekit.client": {"tracekit.rpc", "tracekit.recorder", "grpc", "google.protobuf", "numpy"},
    "tracekit.engines": set(),
    "tracekit.demo": {"tracekit.engines"},
    "tracekit.jobs": {"tracekit.rpc", "tracekit.recorder", "grpc", "google.protobuf", "numpy"},
    "tracekit.scoring": {"torch", "transformers", "numpy"},
    "tracekit.trainer": {"numpy"},
    "tracekit.replay": {
        "tracekit.engines",
        "tracekit.objects",
        "tracekit.trace",
        "tracekit.scoring",
        "tracekit.trainer",
        "tracekit.diagnose",
        "tracekit.audit",
        *"torch transformers numpy pyarrow".split(),
    },
    "tracekit.diagnose": {"numpy"},
    "tracekit.audit": {"tracekit.objects", "tracekit.trace", "numpy", "pyarrow"},
    "tracekit.report": {"tracekit.diagnose", "numpy"},
    "tracekit.cli": OURS | {"click"},
    "tracekitd": {"tracekit.objects", "tracekit.trace", "tracekit.rpc", "grpc", "google.protobuf", "numpy", "pyarrow"},
}

# what a light start must not pull in, though the package as a whole may use it
LAZY = {"tracekit.cli": HEAVY - {"click"}}


def modules_of(package: str) -> list[str]:
    found = importlib.import_module(package)
    names = [m.name for m in pkgutil.walk_packages(found.__path__, f"{package}.")] if package != "tracekit" else []
    return [package, *(n for n in names if not n.endswith("__main__"))]


@pytest.mark.parametrize("package", ALLOWED)
def test_package_imports_only_what_the_design_allows(package: str) -> None:
    program = f"""
import importlib, sys
for name in {modules_of(package)!r}:
    importlib.import_module(name)
print("\\n".join(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    forbidden = (HEAVY | OURS) - ALLOWED[package] - {package} | LAZY.get(package, set())
    dragged_in = {f for f in forbidden if f in loaded}
    assert not dragged_in, f"{package} imports {sorted(dragged_in)}"
