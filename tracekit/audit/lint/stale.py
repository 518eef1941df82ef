"""Prefix hits on blocks that other weights computed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.audit.findings import Array
from tracekit.audit.rows import EngineRows, sequence_key
from tracekit.join import lookup, pick


@dataclass(frozen=True)
class StaleHit:
    """A request that was given blocks which weights before its own computed, at least in part."""

    request: int
    engine_step: int
    num_stale: int  # blocks
    num_blocks: int
    oldest_version: int  # that computed a part of one
    weight_version: int  # of the step


def stale_hits(rows: EngineRows) -> list[StaleHit]:
    """Find every hit on a block that is older than a change of what its request uses: the model, or its adapter.

    A change that no fingerprint shows is one, but where fingerprints were taken and all are the same.
    """
    cache, steps = rows["cache"], rows["steps"]
    at, oldest = rows.step_of(cache["engine_step"]), cache["min_weight_version"]
    known = (oldest >= 0) & (at >= 0)
    now = pick(steps["weight_version"], at, 0)
    loras = rows.requests.column("lora").to_pylist()
    row = rows.row_of(cache["request"])
    stale = np.zeros(known.size, dtype=bool)
    for lora in {loras[i] if i >= 0 else None for i in np.unique(row).tolist()}:
        mine = known & np.array([i >= 0 and loras[i] == lora for i in row.tolist()], dtype=bool)
        changed = real_changes(rows, lora)
        between = np.searchsorted(changed, now, side="right") - np.searchsorted(changed, oldest, side="right")
        stale |= mine & (between > 0)
    key = sequence_key(cache)
    hits, first, of, num_stale = np.unique(key[stale], return_index=True, return_inverse=True, return_counts=True)
    least = np.full(hits.size, np.iinfo(np.int64).max)
    np.minimum.at(least, of, oldest[stale])
    whose = lookup(hits, key)
    num_blocks = np.bincount(whose[whose >= 0], minlength=hits.size)
    return [
        StaleHit(
            request=int(cache["request"][row]),
            engine_step=int(cache["engine_step"][row]),
            num_stale=int(num_stale[i]),
            num_blocks=int(num_blocks[i]),
            oldest_version=int(least[i]),
            weight_version=int(now[row]),
        )
        for i, row in enumerate(np.flatnonzero(stale)[first].tolist())
    ]


def real_changes(rows: EngineRows, lora: str | None) -> Array:
    """Return the versions, ascending, whose weights a request with this adapter does not share with the one before."""
    weights = rows.changes
    mine = np.array([of in (None, lora) for of in rows.adapters], dtype=bool)
    return np.unique(weights["weight_version"][mine & (weights["num_changed"] != 0)])
