"""Rows on their way into sealed batches: gathered as they come, weighed by request, cut into runs of requests."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

GATHER = 256
MERGE_PAIRS = 1 << 20
LAST_REQUEST = (1 << 32) - 1

Array = npt.NDArray[Any]


class Rows:
    """Rows of one table, gathered; copied now and then, because a slice keeps the whole batch it came from alive."""

    def __init__(self) -> None:
        self._done: list[pa.StructArray] = []
        self._fresh: list[pa.StructArray] = []

    def add(self, rows: pa.StructArray) -> None:
        """Gather more rows."""
        if len(rows):
            self._fresh.append(rows)
        if len(self._fresh) >= GATHER:
            self._done.append(pa.concat_arrays(self._fresh))
            self._fresh = []

    def take(self) -> list[pa.StructArray]:
        """Return what was gathered, in order."""
        return self._done + self._fresh


class Weights:
    """How much of a batch each request fills, in token rows; sparse, because its number is whatever a producer sent."""

    def __init__(self) -> None:
        self.total = 0
        self._fresh: list[tuple[Array, Array]] = []
        self._num_fresh = 0

    def add(self, requests: Array, weight: Array | int = 1) -> None:
        """Add `weight` to each request, once for every time it is named."""
        if not len(requests):
            return
        found, index = np.unique(requests, return_inverse=True)
        counts = np.zeros(len(found), np.int64)
        np.add.at(counts, index, weight)
        self.total += int(counts.sum())
        self._fresh.append((found, counts))
        self._num_fresh += len(found)
        if self._num_fresh > MERGE_PAIRS:
            self._fresh = [self.by_request()]
            self._num_fresh = 0  # of new ones: the merged are at most one per request

    def by_request(self) -> tuple[Array, Array]:
        """Return the requests, ascending, and what each weighs."""
        if not self._fresh:
            return np.zeros(0, np.uint32), np.zeros(0, np.int64)
        requests, index = np.unique(np.concatenate([pair[0] for pair in self._fresh]), return_inverse=True)
        counts = np.zeros(len(requests), np.int64)
        np.add.at(counts, index, np.concatenate([pair[1] for pair in self._fresh]))
        return requests, counts


def slots_of(requests: Array, weights: Array, batch_rows: int) -> list[tuple[int, int]]:
    """Cut the requests into runs of about `batch_rows` in weight, at least one run; the last is open."""
    slots: list[tuple[int, int]] = []
    first = done = 0
    ends = np.cumsum(weights)
    while True:
        cut = int(np.searchsorted(ends, done + batch_rows))
        if cut + 1 >= len(ends):
            return [*slots, (first, LAST_REQUEST)]
        last, done = int(requests[cut]), int(ends[cut])
        slots.append((first, last))
        first = last + 1
