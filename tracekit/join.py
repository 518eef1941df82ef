"""Joins of two tables by their numbers: which row of one belongs to each row of the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def lookup(keys: Array, wanted: Array) -> npt.NDArray[np.int64]:
    """Return for each wanted number the first place in `keys` that holds it; -1 where none does.

    Args:
        keys: int [K], ascending; a number may be there twice.
        wanted: int [N], in any order.
    """
    if not keys.size:
        return np.full(wanted.shape, -1, dtype=np.int64)
    if int(keys[-1]) - int(keys[0]) == keys.size - 1 and (np.diff(keys) == 1).all():  # numbered without holes
        at = np.subtract(wanted, int(keys[0]), dtype=np.int64)
        at[(at < 0) | (at >= keys.size)] = -1
        return at
    at = np.minimum(np.searchsorted(keys, wanted), keys.size - 1)
    return np.where(keys[at] == wanted, at, -1)


def pick(values: Array, at: Array, missing: Any) -> Array:
    """Return the values at the places that `lookup` found, and `missing` for those that it did not find.

    Args:
        values: [K].
        at: int [N], places in `values`, or -1.
        missing: a scalar, or [N].
    """
    return np.where(at < 0, missing, values[at] if values.size else missing)


def pair_key(first: Array, second: Array) -> npt.NDArray[np.int64]:
    """Return one number for each pair of unsigned 32-bit numbers, in the order of the pairs, as of (step, request)."""
    key = first.astype(np.int64)
    key <<= 32
    key |= second.astype(np.int64, copy=False)
    return key
