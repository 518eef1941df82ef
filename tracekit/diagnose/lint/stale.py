"""Prefix hits whose blocks an older version of the weights may have computed."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracekit.diagnose.doctor.rows import EngineRows
from tracekit.diagnose.doctor.types import Array
from tracekit.tables import NEW, PREEMPTED, RESUMED

__all__ = ["StaleHit", "cache_resets", "stale_hits"]


@dataclass(frozen=True)
class StaleHit:
    """A request that was given cached tokens which weights before its own computed."""

    request: int
    engine_step: int
    num_cached: int
    weight_version: int
    cached_version: int  # the oldest that may have computed its first block


def cache_resets(rows: EngineRows) -> Array:
    """Return the first engine step after each reset of the prefix cache that the engine says it did, ascending."""
    done = [
        row["engine_step"]
        for row in rows.control
        if row["name"] == "reset_prefix_cache" and json.loads(row["answer"] or "null") is not False
    ]
    return np.array(sorted(done), dtype=np.int64)


def stale_hits(rows: EngineRows) -> list[StaleHit]:
    """Find every hit whose first block was computed under older weights and not dropped by a reset since.

    An eviction is not recorded: a block that was evicted and computed again is still named.
    """
    scheduled, steps = rows["scheduled"], rows["steps"]
    if not rows.changes["weight_version"].size or not steps["engine_step"].size:
        return []
    starts = (scheduled["flags"] & (NEW | RESUMED)) != 0
    hits = np.flatnonzero(starts & (scheduled["num_computed"] > 0))
    if not hits.size:
        return []
    resets = cache_resets(rows)
    # a hit may be shorter than a block where blocks are shared in part
    block = min(int(rows.setting("cache_config", "block_size") or 1), int(scheduled["num_computed"][hits].min()))
    computed = _who_computed(rows, block)
    found = []
    for i in hits.tolist():
        request, step = int(scheduled["request"][i]), int(scheduled["engine_step"][i])
        row = int(rows.row_of(np.array([request]))[0])
        if row < 0:
            continue
        cached = int(scheduled["num_computed"][i])
        since = int(resets[np.searchsorted(resets, step, side="right") - 1]) if (resets <= step).any() else 0
        sources = computed.get(_first_block(rows, row, block), [])
        older = [version for at, version in sources if since <= at < step]
        now = _version(rows, step)
        if older and min(older) < now:
            found.append(StaleHit(request, step, cached, now, min(older)))
    return found


def _who_computed(rows: EngineRows, block: int) -> dict[Any, list[tuple[int, int]]]:
    """(step, weight version) of everybody who computed a first block, by its identity."""
    scheduled = rows["scheduled"]
    starts = (scheduled["num_computed"] == 0) & ((scheduled["flags"] & PREEMPTED) == 0)
    found: dict[Any, list[tuple[int, int]]] = {}
    row_of = rows.row_of(scheduled["request"])
    for i in np.flatnonzero(starts & (row_of >= 0)).tolist():
        step = int(scheduled["engine_step"][i])
        key = _first_block(rows, int(row_of[i]), block)
        found.setdefault(key, []).append((step, _version(rows, step)))
    return found


def _first_block(rows: EngineRows, row: int, block: int) -> Any:
    ids = rows.requests.column("prompt_token_ids")[row].values.to_numpy()[:block]
    return (
        rows.requests.column("lora")[row].as_py(),
        rows.requests.column("cache_salt")[row].as_py(),
        ids.astype("<u4").tobytes(),
    )


def _version(rows: EngineRows, step: int) -> int:
    steps = rows["steps"]
    at = min(int(np.searchsorted(steps["engine_step"], step)), steps["engine_step"].size - 1)
    return int(steps["weight_version"][at])
