"""Values of other tokens: of the one before or after in a rollout, of another request in the same engine step."""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import F8, I8, Run


def shifted(run: Run, values: F8, by: int) -> F8:
    """Return the value of the token `by` places before, in the same rollout, [N]; NaN where there is none."""
    moved = np.roll(values, by)
    inside = np.roll(run.rollout, by) == run.rollout
    inside[:by] = False if by > 0 else inside[:by]
    inside[by:] = False if by < 0 else inside[by:]
    return np.where(inside, moved, np.nan)


def rows_beside(run: Run, by: int) -> I8:
    """Return the token of the request `by` rows further in the batch, in the same step, [N]; its own for none."""
    order = np.lexsort((run.rollout, run.engine_step, run.engine))
    first = np.r_[True, (np.diff(run.engine_step[order]) != 0) | (np.diff(run.engine[order]) != 0)][: order.size]
    starts = np.flatnonzero(first)
    size = np.diff([*starts, order.size])
    start, size = np.repeat(starts, size), np.repeat(size, size)
    at = np.empty_like(order)
    at[order] = order[start + (np.arange(order.size) - start + by) % size]
    return at


def other_row(values: F8, at: I8) -> F8:
    """Return the value of each token's neighbour, as `rows_beside` has them, [N]; NaN where there is none."""
    return np.where(at == np.arange(at.size), np.nan, values[at])
