"""Rollouts that were under way when something happened."""

from __future__ import annotations

import numpy as np

from tracekit.audit.findings import Array
from tracekit.audit.lint.stale import num_changes
from tracekit.audit.rows import EngineRows
from tracekit.tables import PREEMPTED


def num_running(rows: EngineRows, engine_step: int) -> int:
    """Count the requests that held keys and values before an engine step and are computed on from then.

    One that was preempted before has nothing to lose; one that never comes back is not seen.
    """
    scheduled = rows["scheduled"]
    before = scheduled["engine_step"] < engine_step
    # the last row of each request before the step: sorted, a later one overwrites an earlier
    order = np.lexsort((scheduled["engine_step"][before], scheduled["request"][before]))
    request, flags = scheduled["request"][before][order], scheduled["flags"][before][order]
    last = np.append(request[1:] != request[:-1], True) if request.size else np.zeros(0, dtype=bool)
    held = request[last & ((flags & PREEMPTED) == 0)]
    return int(np.intersect1d(held, scheduled["request"][~before]).size)


def crossings(rows: EngineRows) -> Array:
    """Return the request of every two neighbouring tokens between which weights that the request uses changed."""
    tokens = rows.accepted
    request, version = tokens["request"], tokens["weight_version"]
    row = rows.row_of(request)
    number = num_changes(rows, row, version)
    found = (request[1:] == request[:-1]) & (row[1:] >= 0) & (number[1:] != number[:-1])
    crossing: Array = request[1:][found]
    return crossing
