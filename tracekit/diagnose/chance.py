"""How likely a clean run would look as bad as this one."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, log1p

import numpy as np

from tracekit.diagnose.data import F8, Run
from tracekit.diagnose.noise import FALSE_ROLLOUTS, TokenNoise
from tracekit.diagnose.pooled import Change
from tracekit.diagnose.shift import log_e_of_run

NUM_TESTS = 3  # the smallest of so many chances is taken, and times that for the choice


def chance_of(run: Run, judged: TokenNoise, changes: Sequence[Change]) -> float:
    """Return how likely a clean run would look at least this bad: the smallest of three, times three for the choice.

    That at least so many rollouts have a token beyond noise (binomial; the threshold lets `FALSE_ROLLOUTS` of clean
    ones show one), 1/e of the run's sustained shifts, and that all rollouts together change as clearly along an axis.
    Tokens beyond noise are not counted one by one: in bfloat16 a clean rollout that has one often has another beside
    it, because both read a context that rounding moves far.
    """
    rollouts = len(run.rollouts)
    hit = len(np.unique(run.rollout[judged.beyond]))
    single = binomial_tail(hit, rollouts, FALSE_ROLLOUTS)
    sustained = exp(-max(log_e_of_run(judged.shifts), 0.0))
    pooled = min((change.chance for change in changes), default=1.0)
    return min(NUM_TESTS * min(single, sustained, pooled), 1.0)


def binomial_tail(at_least: int, n: int, p: float) -> float:
    """Return how likely at least so many of `n` happen, each with probability `p`."""
    k = np.arange(1, n + 1)
    return _tail(n * log1p(-p) + np.cumsum(np.log((n - k + 1) / k) + log(p) - log1p(-p)), at_least)


def _tail(log_chance: F8, at_least: int) -> float:
    """Sum of the chances of `at_least` and more, of which [k − 1] is that of k: small ones keep their digits."""
    return 1.0 if at_least <= 0 else min(float(np.exp(log_chance[at_least - 1 :]).sum()), 1.0)
