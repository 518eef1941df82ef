"""Where recorders were attached to engines in the middle of their lives, and taken off again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tracekit.plural import plural


def attached(control: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each engine whose recording began or ended between two of its steps.

    Args:
        control: the rows of that table, in order.
    """
    found: dict[int, list[str]] = {}
    for row in control:
        said = found.setdefault(int(row["engine"]), [])
        if row["name"] == "attach":
            joined = _joined(row["answer"])
            said.append(f"attached at step {row['engine_step']} with {plural(joined, 'request')} under way")
        elif row["name"] == "detach":
            said.append(f"detached at step {row['engine_step']}")
    return [f"engine {engine}: {', '.join(said)}" for engine, said in found.items() if said]


def _joined(answer: str) -> int:
    try:
        return int(json.loads(answer)["joined"])
    except (ValueError, KeyError, TypeError):
        return 0
