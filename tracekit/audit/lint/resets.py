"""Where a prefix cache was emptied, and which changes of the weights it was not emptied for."""

from __future__ import annotations

from typing import Any

import numpy as np

from tracekit.audit.findings import Array
from tracekit.audit.rows import EngineRows
from tracekit.trace.values import json_object

PAUSES = ("pause_scheduler", "pause_generation")


def emptied(rows: EngineRows, *, connector: bool = False) -> Array:
    """Return the engine steps before which the cache was emptied, ascending.

    Blocks of one adapter or salt are emptied with all others.

    Args:
        connector: only where a KV connector was emptied too.
    """
    steps = [row["engine_step"] for row in rows.control if _empties(row, connector)]
    return np.unique(np.array(steps, dtype=np.int64))


def clears(row: dict[str, Any]) -> bool:
    """Whether a row of the control table asks for a pause that empties the cache."""
    return row["name"] in PAUSES and bool(argument(row, 1, "clear_cache", True))


def argument(row: dict[str, Any], place: int, name: str, default: Any) -> Any:
    """Return one argument of a call in the control table, given by place or by name."""
    arguments = json_object(row["arguments"], "the arguments of a call")
    args, kwargs = arguments.get("args") or [], arguments.get("kwargs") or {}
    return kwargs.get(name, args[place] if len(args) > place else default)


def kept_blocks(rows: EngineRows, *, connector: bool = False) -> tuple[Array, int]:
    """Return the engine steps at which other weights took over blocks of older ones, and how many changes there were.

    A change counts where something ran before it and something after it, and where fingerprints do not say that
    nothing moved. One with an emptied cache between the last step before it and its own first step took nothing over,
    in whatever order both came.
    """
    ran = rows["steps"]["engine_step"]
    model = np.array([lora is None for lora in rows.adapters], dtype=bool)
    starts = np.unique(rows.changes["engine_step"][model & (rows.changes["num_changed"] != 0)])
    starts = starts[(starts > 0) & (starts <= (ran.max() if ran.size else -1))]
    return starts[~np.isin(starts, emptied(rows, connector=connector))], int(starts.size)


def _empties(row: dict[str, Any], connector: bool) -> bool:
    if row["name"] == "reset_prefix_cache":
        return row["answer"] == "true" and bool(not connector or argument(row, 1, "reset_connector", False))
    # a pause that is pending resets when the engine is idle, which is a row of its own, as is any of a connector
    return clears(row) and row["answer"] == "null" and not connector


def salted(rows: EngineRows) -> bool:
    """Whether cache salts keep the blocks of each version apart: every request has one, and none is used in two."""
    versions: dict[str, set[int]] = {}
    salts = rows.requests.column("cache_salt").to_pylist()
    row = rows.row_of(rows.accepted["request"])
    for at, version in set(zip(row.tolist(), rows.accepted["weight_version"].tolist(), strict=True)):
        if salts[at] is None:
            return False
        versions.setdefault(salts[at], set()).add(version)
    return bool(versions) and all(len(seen) == 1 for seen in versions.values())
