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
    row = rows.row_of(cache["request"])
    stale = known & (row >= 0) & (num_changes(rows, row, now) > num_changes(rows, row, oldest))
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


def num_changes(rows: EngineRows, row: Array, version: Array) -> Array:
    """[N] numbers that grow with each change of what a request uses: the model, and its adapter's own weights.

    Two of them are to be compared for the same request only.

    Args:
        rows: of one engine.
        row: [N] int64, of `rows.requests`; -1 for a request that is not there.
        version: [N] int64, the weight version that the request saw.
    """
    real, changed = rows.changes["num_changed"] != 0, rows.changes["weight_version"]
    index = {name: number for number, name in enumerate(dict.fromkeys([None, *rows.adapters]))}
    of = np.array([index[name] for name in rows.adapters], dtype=np.int64)
    own = np.array([index.get(name, 0) for name in rows.requests.column("lora").to_pylist()] + [0], dtype=np.int64)
    # the versions of each adapter lie in a range of their own, so that one search serves all
    width = 2 + max(int(changed.max(initial=0)), int(version.max(initial=0)))
    of_adapters = np.sort((of * width + changed)[real & (of > 0)])
    own_until = np.searchsorted(of_adapters, own[row] * width + version, side="right")
    found: Array = np.searchsorted(np.sort(changed[real & (of == 0)]), version, side="right") + own_until
    return found
