"""How likely a clean run would look as bad as this one."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, log1p

import numpy as np

from tracekit.diagnose.data import F8, Run
from tracekit.diagnose.noise import DEGREES, FALSE_ROLLOUTS, ROBUST_OF_T, TokenNoise
from tracekit.diagnose.pooled import Change
from tracekit.diagnose.shift import log_e_of_run
from tracekit.diagnose.student import two_sided_tail

NUM_TESTS = 4  # the smallest of so many chances is taken, and times that for the choice


def chance_of(run: Run, judged: TokenNoise, changes: Sequence[Change]) -> float:
    """Return how likely a clean run would look at least this bad: the smallest of four, times four for the choice.

    That at least so many rollouts have a token beyond noise (binomial; the threshold lets `FALSE_ROLLOUTS` of clean
    ones show one), that any token is as far off as the furthest one, 1/e of the run's sustained shifts, and that all
    rollouts together change as clearly along an axis. Tokens beyond noise are not counted one by one: in bfloat16 a
    clean rollout that has one often has another beside it, because both read a context that rounding moves far.
    """
    rollouts = len(run.rollouts)
    hit = len(np.unique(run.rollout[judged.beyond]))
    single = binomial_tail(hit, rollouts, FALSE_ROLLOUTS)
    furthest = furthest_token(judged)
    sustained = exp(-max(log_e_of_run(judged.shifts), 0.0))
    pooled = min((change.chance for change in changes), default=1.0)
    return min(NUM_TESTS * min(single, furthest, sustained, pooled), 1.0)


def furthest_token(judged: TokenNoise) -> float:
    """Return how likely any token of a clean run is as far off as this run's furthest one.

    One token that no noise explains is a fault, in however many rollouts; of 90 clean recordings of real engines the
    least likely furthest token had 0.03.
    """
    sizes = np.abs(judged.z[np.isfinite(judged.z) & ~judged.blurred])
    if not sizes.size:
        return 1.0
    return min(sizes.size * two_sided_tail(float(sizes.max()) * ROBUST_OF_T, DEGREES), 1.0)


def binomial_tail(at_least: int, n: int, p: float) -> float:
    """Return how likely at least so many of `n` happen, each with probability `p`."""
    k = np.arange(1, n + 1)
    return _tail(n * log1p(-p) + np.cumsum(np.log((n - k + 1) / k) + log(p) - log1p(-p)), at_least)


def _tail(log_chance: F8, at_least: int) -> float:
    """Sum of the chances of `at_least` and more, of which [k − 1] is that of k: small ones keep their digits."""
    return 1.0 if at_least <= 0 else min(float(np.exp(log_chance[at_least - 1 :]).sum()), 1.0)
