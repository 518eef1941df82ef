"""How likely a clean run would look as bad as this one."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb, exp, lgamma, log

import numpy as np

from tracekit.diagnose.data import Run
from tracekit.diagnose.noise import FALSE_ROLLOUTS, TokenNoise
from tracekit.diagnose.pooled import Change
from tracekit.diagnose.shift import log_e_of_run

NUM_TESTS = 4  # the smallest of so many chances is taken, and times that for the choice


def chance_of(run: Run, judged: TokenNoise, changes: Sequence[Change]) -> float:
    """Return how likely a clean run would look at least this bad: the smallest of four, times four for the choice.

    That at least so many rollouts have a token beyond noise (binomial), that at least so many tokens are beyond noise
    (Poisson; the threshold lets `FALSE_ROLLOUTS` of clean rollouts show one), 1/e of the run's sustained shifts, and
    that all rollouts together change as clearly along an axis.
    """
    rollouts = len(run.rollouts)
    hit = len(np.unique(run.rollout[judged.beyond]))
    single = binomial_tail(hit, rollouts, FALSE_ROLLOUTS)
    tokens = _poisson_tail(int(np.count_nonzero(judged.beyond)), rollouts * FALSE_ROLLOUTS)
    sustained = exp(-max(log_e_of_run(judged.shifts), 0.0))
    pooled = min((change.chance for change in changes), default=1.0)
    return min(NUM_TESTS * min(single, tokens, sustained, pooled), 1.0)


def binomial_tail(at_least: int, n: int, p: float) -> float:
    """Return how likely at least so many of `n` happen, each with probability `p`."""
    below = sum(exp(log(comb(n, k)) + k * log(p) + (n - k) * log(1 - p)) for k in range(at_least))
    return max(1.0 - below, 0.0)


def _poisson_tail(at_least: int, mean: float) -> float:
    below = sum(exp(k * log(mean) - mean - lgamma(k + 1)) for k in range(at_least)) if mean > 0 else 1.0
    return max(1.0 - below, 0.0)
