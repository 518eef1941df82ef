"""What the pictures show, as numbers: a picture and the table beside it are drawn from the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F8 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int64]

TAIL = 0.001  # a scale ends at this quantile on either side, and says so
MAX_BINS = 24


@dataclass(frozen=True)
class Histogram:
    """How many tokens have which ratio.

    Attributes:
        edges: [B + 1] of d in nats, ascending; the ratio is e^d.
        counts: [B] tokens with edges[i] <= d < edges[i + 1]; the last bin has its upper edge, too.
        below: tokens under the first edge.
        above: tokens over the last edge.
        not_finite: tokens that are in no bin because one of their values is not a finite number.
    """

    edges: list[float]
    counts: list[int]
    below: int
    above: int
    not_finite: int


@dataclass(frozen=True)
class Along:
    """How far off tokens are along something.

    Attributes:
        name: of what.
        rows: of each part: its first and last value, how many tokens, mean d, mean |d|, the 95th percentile of |d|, and
            how many are beyond noise.
    """

    name: str
    rows: list[tuple[int, int, int, float, float, float, int]]


def histogram(d: F8) -> Histogram:
    """Count the ratios of a run."""
    finite = d[np.isfinite(d)]
    if not finite.size:
        return Histogram([-1.0, 1.0], [0], 0, 0, int(d.size))
    low, high = np.quantile(finite, [TAIL, 1 - TAIL])
    reach = max(abs(low), abs(high), 1e-6)
    edges = np.linspace(-reach, reach, MAX_BINS + 1)  # even, so that a shift of all tokens shows
    counts, _ = np.histogram(finite, edges)
    below, above = int(np.count_nonzero(finite < edges[0])), int(np.count_nonzero(finite > edges[-1]))
    return Histogram(edges.tolist(), counts.tolist(), below, above, int(d.size - finite.size))


def along(name: str, values: I8, d: F8, beyond: npt.NDArray[np.bool_]) -> Along:
    """Cut the tokens into at most `MAX_BINS` parts of about as many tokens, in order of `values`."""
    use = np.isfinite(d)
    values, d, beyond = values[use], d[use], beyond[use]
    if not values.size:
        return Along(name, [])
    cuts = np.unique(np.quantile(values, np.linspace(0, 1, MAX_BINS + 1)[:-1], method="lower"))
    part = np.searchsorted(cuts, values, side="right") - 1
    rows = []
    for i in range(cuts.size):
        mine = part == i
        size = np.abs(d[mine])
        own = values[mine]
        rows.append(
            (
                int(own.min()),
                int(own.max()),
                int(own.size),
                float(d[mine].mean()),
                float(size.mean()),
                float(np.quantile(size, 0.95)),
                int(np.count_nonzero(beyond[mine])),
            )
        )
    return Along(name, rows)


def scatter(recorded: F8, replayed: F8, beyond: npt.NDArray[np.bool_], most: int = 4000) -> dict[str, Any]:
    """Return tokens for a picture of one value against the other: those beyond noise first, others spread evenly."""
    use = np.flatnonzero(np.isfinite(recorded) & np.isfinite(replayed))
    hit = use[beyond[use]][: most // 2]
    rest = use[~beyond[use]]
    rest = rest[:: max(int(np.ceil(rest.size / (most - hit.size))), 1)]
    picked = np.concatenate([rest, hit])
    return {
        "recorded": np.round(recorded[picked], 5).tolist(),
        "replayed": np.round(replayed[picked], 5).tolist(),
        "num_beyond": int(hit.size),
        "num_tokens": int(use.size),
    }
