"""One change point over all rollouts: what begins or ends at an engine step, or at an output index, in many of them.

Every token with a choice has a score, the rank of |z| among those of its stratum (engine, prefill or decode, cached or
not), from −1/2 to 1/2: a level of noise that is not that of the floor, or that differs between strata, moves nothing.
Nor does noise that grows with the context as clean noise does: |z| is taken over `tracekit.diagnose.growth`.
For a change at x, the tokens from x on are compared with those before. A rollout's tokens are not independent of each
other, so a rollout counts as one: its sum is what the statistic's deviation is made of, and the chance of the largest
statistic over all x comes from flipping the signs of whole rollouts (Rademacher multipliers; Cameron, Gelbach and
Miller, "Bootstrap-based improvements for inference with clustered errors", 2008), with a fixed seed, so that two runs
on the same trace say the same. Where rollouts are fewer than `LEAST` it says nothing; and over very many the smallest
change is no chance, so the medians have to differ by `ALLOWANCE`, growth aside.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tracekit.diagnose.data import F8, I8, Mask, Run
from tracekit.diagnose.growth import clean_growth
from tracekit.diagnose.noise import ALLOWANCE

Axis = Literal["engine_step", "output_index"]

LEAST = 8  # rollouts
_PLACES = 256  # where a change is looked for
_FLIPS = 1999
_MORE_FLIPS = 20  # times as many where fewer than `_FEW` of the first are as large: a small chance wants many
_FEW = 5
_EDGE = 0.03  # share of the tokens that must lie on either side
_DROP = 4.0  # of the squared statistic: what the confidence set leaves open


@dataclass(frozen=True)
class Change:
    """The likeliest change of the noise of all rollouts along one axis.

    Attributes:
        axis: "engine_step" of one engine, or "output_index" of all rollouts.
        engine: whose steps, null for output indices.
        at: the first step or index after the change.
        first: of the confidence set.
        last: of the confidence set.
        rises: whether tokens are further off from there on, else nearer.
        chance: that a clean run shows a change as clear along any of the axes; 1 of one too small to matter.
        num_rollouts: that have tokens there.
        median_before: median |z| before, in deviations of clean noise.
        median_after: median |z| from there on.
    """

    axis: Axis
    engine: int | None
    at: int
    first: int
    last: int
    rises: bool
    chance: float
    num_rollouts: int
    median_before: float
    median_after: float


def find_changes(run: Run, z: F8, telling: Mask) -> list[Change]:
    """Look for a change along every axis, the likeliest of each.

    Args:
        run: the tokens, with their strata where the trace tells them.
        z: [N] residuals over noise.
        telling: [N] tokens that can tell.
    """
    looks = list(_looks(run, telling))
    growth = clean_growth(run, telling)
    found = []
    for axis, engine, use in looks:
        change = _along(run, z, growth, use, axis, engine, len(looks))
        if change is not None:
            found.append(change)
    return found


def _looks(run: Run, telling: Mask) -> Iterator[tuple[Axis, int | None, Mask]]:
    """Axes along which enough rollouts have tokens on enough places."""
    engines = np.unique(run.engine)
    where: list[tuple[Axis, int | None, Mask]] = [
        *(("engine_step", int(engine), telling & (run.engine == engine)) for engine in engines),
        ("output_index", None, telling),
    ]
    for axis, engine, use in where:
        if np.unique(run.rollout[use]).size >= LEAST and np.unique(getattr(run, axis)[use]).size > 1:
            yield axis, engine, use


def _along(run: Run, z: F8, growth: F8, use: Mask, axis: Axis, engine: int | None, num_looks: int) -> Change | None:
    x, size = getattr(run, axis)[use], np.abs(z[use])
    _, cluster = np.unique(run.rollout[use], return_inverse=True)
    places = _places(x)
    if not places.size:
        return None
    over_growth = size / growth[use]
    sums = _sums(_scores(over_growth, _strata(run)[use]), x, cluster, places)
    deviation = np.sqrt((sums**2).sum(axis=0))
    deviation = np.where(deviation > 0, deviation, np.inf)
    statistic = sums.sum(axis=0) / deviation
    best = int(np.argmax(np.abs(statistic)))
    open_ = places[statistic**2 >= statistic[best] ** 2 - _DROP]
    after = x >= places[best]
    smaller, larger = sorted((np.median(over_growth[~after]), np.median(over_growth[after])))
    chance = _chance(sums / deviation, abs(float(statistic[best]))) if larger > ALLOWANCE * smaller else 1.0
    return Change(
        axis=axis,
        engine=engine,
        at=int(places[best]),
        first=int(open_.min()),
        last=int(open_.max()),
        rises=bool(statistic[best] > 0),
        chance=min(chance * num_looks, 1.0),
        num_rollouts=sums.shape[0],
        median_before=float(np.median(size[~after])),
        median_after=float(np.median(size[after])),
    )


def _chance(scaled: F8, statistic: float) -> float:
    """How often the largest sum over all places is as large, with the signs of the rollouts, [R, place], by chance."""
    random = np.random.default_rng(0)
    found = tried = 0
    while tried < _FLIPS or (found < _FEW and tried < _FLIPS * _MORE_FLIPS):
        signs = random.integers(0, 2, (_FLIPS, scaled.shape[0])) * 2.0 - 1.0
        found += int(np.count_nonzero(np.abs(signs @ scaled).max(axis=1) >= statistic * (1 - 1e-12)))
        tried += _FLIPS
    return (1 + found) / (1 + tried)


def _places(x: I8) -> I8:
    """Values of x that leave enough tokens on either side, at most so many, spread evenly over the tokens."""
    values, counts = np.unique(x, return_counts=True)
    before = np.cumsum(counts)[:-1] / x.size
    values = values[1:][(before >= _EDGE) & (before <= 1 - _EDGE)]
    few = np.unique(np.linspace(0, values.size - 1, min(_PLACES, values.size)).astype(np.int64))
    return values[few] if values.size else values


def _strata(run: Run) -> I8:
    """[N] a number for what must not be compared: prefill or decode, cached or not, engine."""
    if run.strata is None:
        stratum: I8 = run.engine * 4 + (run.output_index == 0)
    else:
        stratum = run.engine * 4 + 2 * (run.strata.num_cached > 0) + (run.strata.prefill == 1)
    return stratum


def _scores(size: F8, stratum: I8) -> F8:
    """[n] rank within the stratum, −1/2 to 1/2, mean 0; equal sizes by the mean of their ranks."""
    scores = np.zeros(size.size)
    for which in np.unique(stratum):
        own = np.flatnonzero(stratum == which)
        _, inverse, counts = np.unique(size[own], return_inverse=True, return_counts=True)
        rank = np.cumsum(counts) - 0.5 * (counts + 1) + 0.5
        scores[own] = rank[inverse] / own.size - 0.5
    return scores


def _sums(scores: F8, x: I8, cluster: I8, places: I8) -> F8:
    """[rollout, place] of each rollout's tokens: scores from the place on, less their share of all its scores."""
    num = int(cluster.max()) + 1
    bin_of = np.searchsorted(places, x, side="right")  # number of places at or before the token
    by_bin = np.bincount(cluster * (places.size + 1) + bin_of, weights=scores, minlength=num * (places.size + 1))
    from_here = np.cumsum(by_bin.reshape(num, -1)[:, ::-1], axis=1)[:, ::-1]
    share = np.array([np.count_nonzero(x >= place) for place in places]) / x.size
    sums: F8 = from_here[:, 1:] - share * from_here[:, :1]
    return sums
