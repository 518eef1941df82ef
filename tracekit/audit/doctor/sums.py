"""Sums by key."""

from __future__ import annotations

import numpy as np

from tracekit.audit.findings import Array
from tracekit.join import lookup


def sum_by(keys: Array, of: Array, values: Array) -> Array:
    """Sum `values` [N] by the key `of` [N] each; `keys` [K] are ascending, values of other keys are left out."""
    totals = np.zeros(keys.size, dtype=np.int64)
    at = lookup(keys, of)
    np.add.at(totals, at[at >= 0], values[at >= 0])
    return totals
