"""Which tokens of a run a hypothesis holds for: all, those from a step on, those before it, or some rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np

from tracekit.diagnose.data import I8
from tracekit.diagnose.settings import F8, Mask


@dataclass(frozen=True)
class Part:
    """Some of n tokens.

    Attributes:
        which: [n]
        nats: by which a hypothesis is ahead there, less what choosing the part costs.
        since_step: first engine step, None where it holds from the beginning.
        until_step: the first at which it no longer holds, None where it holds to the end.
    """

    which: Mask
    nats: float
    since_step: int | None = None
    until_step: int | None = None


def best_part(nats: F8, engine_step: I8, rollout: I8) -> Part:
    """Return where a hypothesis is ahead.

    Args:
        nats: [n] by which it is ahead on each token.
        engine_step: [n]
        rollout: [n]
    """
    found = [Part(np.ones(nats.size, bool), float(nats.sum()))]
    steps, at = np.unique(engine_step, return_inverse=True)
    sums = np.cumsum(np.bincount(at, weights=nats))
    if steps.size > 1:
        after = int(np.argmax(sums[-1] - sums[:-1])) + 1
        before = int(np.argmax(sums[:-1])) + 1
        price = log(steps.size) + 2.0
        found.append(Part(at >= after, float(sums[-1] - sums[after - 1]) - price, since_step=int(steps[after])))
        found.append(Part(at < before, float(sums[before - 1]) - price, until_step=int(steps[before])))
    rollouts, of = np.unique(rollout, return_inverse=True)
    by_rollout = np.bincount(of, weights=nats)
    if rollouts.size > 1:
        chosen = by_rollout > 0
        price = rollouts.size * log(2) + 2.0
        found.append(Part(chosen[of], float(by_rollout[chosen].sum()) - price))
    return max(found, key=lambda part: part.nats)
