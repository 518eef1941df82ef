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
        before: [B] the same as the trainer sees them, before the values' meaning is put right; empty without a fix.
        below: tokens under the first edge.
        above: tokens over the last edge.
        not_finite: tokens that are in no bin because one of their values is not a finite number.
    """

    edges: list[float]
    counts: list[int]
    before: list[int]
    below: int
    above: int
    not_finite: int


@dataclass(frozen=True)
class Along:
    """How far off tokens are along something.

    Attributes:
        name: of what.
        rows: of each part: its first and last value, how many tokens, mean d, mean |d|, the 95th percentile of |d|, how
            many are beyond noise, and mean |d| before the values' meaning is put right (NaN without a fix).
    """

    name: str
    rows: list[tuple[int, int, int, float, float, float, int, float]]


def histogram(d: F8, before: F8 | None = None) -> Histogram:
    """Count the ratios of a run.

    Args:
        d: [N] nats.
        before: [N] nats, as the trainer sees them, where a fix makes d of them.
    """
    finite = d[np.isfinite(d)]
    if not finite.size:
        return Histogram([-1.0, 1.0], [0], [], 0, 0, int(d.size))
    other = finite if before is None else before[np.isfinite(before)]
    low, high = np.quantile(np.r_[finite, other], [TAIL, 1 - TAIL])
    reach = max(abs(low), abs(high), 1e-6)
    edges = np.linspace(-reach, reach, MAX_BINS + 1)  # even, so that a shift of all tokens shows
    counts, _ = np.histogram(finite, edges)
    below, above = int(np.count_nonzero(finite < edges[0])), int(np.count_nonzero(finite > edges[-1]))
    unfixed = [] if before is None else np.histogram(other, edges)[0].tolist()
    return Histogram(edges.tolist(), counts.tolist(), unfixed, below, above, int(d.size - finite.size))


def along(name: str, values: I8, d: F8, beyond: npt.NDArray[np.bool_], before: F8 | None = None) -> Along:
    """Cut the tokens into at most `MAX_BINS` parts of about as many tokens, in order of `values`.

    Args:
        name: of what.
        values: [N]; tokens with a negative one are left out, because it is not known.
        d: [N] nats.
        beyond: [N] whether beyond noise.
        before: as in `histogram`.
    """
    use = np.isfinite(d) & (values >= 0)
    unfixed = np.full(d.shape, np.nan) if before is None else before
    values, d, beyond, unfixed = values[use], d[use], beyond[use], unfixed[use]
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
                _mean(np.abs(unfixed[mine])),
            )
        )
    return Along(name, rows)


def _mean(values: F8) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else float("nan")


def scatter(recorded: F8, replayed: F8, d: F8, beyond: npt.NDArray[np.bool_], most: int = 4000) -> dict[str, Any]:
    """Return tokens for a picture of one value against the other: those beyond noise first, others spread evenly.

    It ends at `low`, the quantile `TAIL` of both; `num_off` tokens lie below. Tokens without a finite d are left out.
    """
    use = np.flatnonzero(np.isfinite(d) & np.isfinite(recorded) & np.isfinite(replayed))
    low = min(float(np.quantile(np.r_[recorded[use], replayed[use]], TAIL)) if use.size else -1.0, -1e-3)
    inside = use[np.minimum(recorded[use], replayed[use]) >= low]
    hit = inside[beyond[inside]][: most // 2]
    rest = inside[~beyond[inside]]
    rest = rest[:: max(int(np.ceil(rest.size / (most - hit.size))), 1)]
    picked = np.concatenate([rest, hit])
    return {
        "recorded": np.round(recorded[picked], 5).tolist(),
        "replayed": np.round(replayed[picked], 5).tolist(),
        "num_beyond": int(hit.size),
        "num_tokens": int(use.size),
        "num_off": int(use.size - inside.size),
        "low": low,
    }
