"""The tokens that a profile does not keep one by one: their weights in sum, at any temperature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tracekit.diagnose.settings import F8


@dataclass(frozen=True)
class Tail:
    """Log of the sum of exp(beta × gap) over these tokens, gap being a logit minus the row's largest.

    It is a convex and smooth function of beta, so that a cubic through its values tells it in between, and its first
    two derivatives are the mean and the variance of the gap.
    """

    betas: F8  # [B] ascending
    values: F8  # [n, B] nats; -inf where there are no such tokens

    def __getitem__(self, rows: Any) -> Tail:
        """Return the tails of some rows."""
        return Tail(self.betas, self.values[rows])

    def at(self, beta: F8, shift: F8) -> tuple[F8, F8, F8]:
        """Return weight, mean and mean square of beta × (gap + shift), [n] each.

        Args:
            beta: [n] inverse temperatures; beyond those of the profile the log goes on straight.
            shift: [n] by which the gaps are measured from another logit than the largest.
        """
        some = np.isfinite(self.values[:, 0])
        knots = np.where(some[:, None], self.values, 0.0)
        left = np.clip(np.searchsorted(self.betas, beta) - 2, 0, self.betas.size - 4)
        rows = np.arange(beta.size)
        nodes = self.betas[left[:, None] + np.arange(4)]  # [n, 4]
        at_nodes = knots[rows[:, None], left[:, None] + np.arange(4)]
        inside = np.clip(beta, self.betas[0], self.betas[-1])
        log_sum, mean, variance = _cubic(nodes, at_nodes, inside)
        log_sum = log_sum + mean * (beta - inside) + beta * shift
        gap = beta * (mean + shift)
        weight = np.where(some, np.exp(np.minimum(log_sum, 700.0)), 0.0)
        return weight, gap, gap**2 + beta**2 * np.maximum(variance, 0.0)


def _cubic(nodes: F8, values: F8, x: F8) -> tuple[F8, F8, F8]:
    """Newton's cubic through four nodes a row: its value and its first two derivatives at x."""
    divided = values.copy()
    for order in (1, 2, 3):
        divided[:, order:] = (divided[:, order:] - divided[:, order - 1 : -1]) / (nodes[:, order:] - nodes[:, :-order])
    a, b, c, d = divided.T
    u, v, w = x - nodes[:, 0], x - nodes[:, 1], x - nodes[:, 2]
    value = a + u * (b + v * (c + w * d))
    first = b + (u + v) * c + (u * v + u * w + v * w) * d
    second = 2 * c + 2 * (u + v + w) * d
    return value, first, second
