"""Values of other tokens: of the one before or after in a rollout, of another request in the same engine step."""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import F8, Run


def shifted(run: Run, values: F8, by: int) -> F8:
    """Return the value of the token `by` places before, in the same rollout, [N]; NaN where there is none."""
    moved = np.roll(values, by)
    inside = np.roll(run.rollout, by) == run.rollout
    inside[:by] = False if by > 0 else inside[:by]
    inside[by:] = False if by < 0 else inside[by:]
    return np.where(inside, moved, np.nan)


def other_row(run: Run, values: F8, by: int) -> F8:
    """Return the value that the request `by` rows further in the batch got in the same step, [N]; NaN for none."""
    order = np.lexsort((run.rollout, run.engine_step, run.engine))
    at, place = np.full(order.size, -1, dtype=np.int64), np.arange(order.size)
    _, group = np.unique(np.stack([run.engine, run.engine_step])[:, order], axis=1, return_inverse=True)
    starts = np.searchsorted(group, group, side="left")
    ends = np.searchsorted(group, group, side="right")
    at[order] = order[starts + (place - starts + by) % (ends - starts)]
    return np.where(at == np.arange(order.size), np.nan, values[at])
