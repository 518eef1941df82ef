"""Who imports whom in a source tree, read from its syntax: imports inside functions and for type checkers too."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path

Graph = dict[str, dict[str, int]]  # module -> module it imports -> the line


def import_graph(roots: Iterable[Path]) -> Graph:
    """Return what the modules of the packages at `roots` import of each other.

    `from package import name` is an import of the module `package.name` where there is one, and of `package` where
    not. The packages above a module count only where they are named themselves.
    """
    files = {name: path for root in roots for name, path in _modules(root)}
    graph: Graph = {}
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        found = graph.setdefault(name, {})
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            for target in _targets(node, package):
                while target and target not in files:
                    target = target.rpartition(".")[0]
                if target and target != name:
                    found.setdefault(target, getattr(node, "lineno", 0))
    return graph


def upward(graph: Graph, rooms: Mapping[str, Set[str]], everybody: Set[str]) -> list[str]:
    """Return one line per import that leaves its room for one that `rooms` does not name."""
    return [
        f"{module}:{line} imports {target}"
        for module, found in sorted(graph.items())
        for target, line in sorted(found.items())
        if room_of(target) not in rooms[room_of(module)] | everybody | {room_of(module)}
    ]


def room_of(module: str) -> str:
    """Return the room of a module: `trace` for `tracekit.trace.reader`, the package itself for a package's face."""
    package, _, inner = module.partition(".")
    return inner.partition(".")[0] if package == "tracekit" and inner else package


def circles(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components of more than one module, each sorted (Tarjan's algorithm)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for target in graph.get(module, {}):
            if target not in number:
                visit(target)
                low[module] = min(low[module], low[target])
            elif target in stack:
                low[module] = min(low[module], number[target])
        if low[module] == number[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for module in graph:
        if module not in number:
            visit(module)
    return sorted(found)


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _targets(node: ast.AST, package: str) -> Iterator[str]:
    """Yield the modules that a statement or an `import_module("...")` may name, in full."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        # the version stands in the face's own file: who reads it takes no part in what the face hands out
        yield from (f"{base}.{alias.name}" for alias in node.names if alias.name != "__version__")
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        called = getattr(node.func, "attr", getattr(node.func, "id", ""))
        if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            yield node.args[0].value
