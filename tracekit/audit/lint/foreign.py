"""Blocks that a V0 engine took for a resumed request's own after it had given them to others."""

from __future__ import annotations

import numpy as np

from tracekit.audit.rows import EngineRows, sequence_key
from tracekit.tables import RESUMED


def foreign_blocks(rows: EngineRows) -> list[tuple[int, int, int]]:
    """Return (request, engine step, blocks) of V0's resumptions on blocks that nobody computed as far as they count.

    Where a step is missing nobody knows who computed a block: nothing is found.
    """
    steps, cache, scheduled = rows["steps"]["engine_step"], rows["cache"], rows["scheduled"]
    if rows.about.get("kind") != "v0" or (steps != np.arange(steps.size)).any():
        return []
    resumed = sequence_key(scheduled)[(scheduled["flags"] & RESUMED) != 0]
    of = sequence_key(cache)
    unknown = (cache["min_weight_version"] < 0) & np.isin(of, resumed)
    _, first, count = np.unique(of[unknown], return_index=True, return_counts=True)
    places = np.flatnonzero(unknown)[first]
    return [
        (int(cache["request"][at]), int(cache["engine_step"][at]), int(n))
        for at, n in zip(places.tolist(), count.tolist(), strict=True)
    ]
