"""Residuals of single tokens in units of their own response to logit noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, Run
from tracekit.scores import RAW, Scores, Values

# Spacing of float32 between 16 and 32, where logits live: a log-softmax in float32 carries no less, in nats.
FLOAT32_RESOLUTION = 2.0**-19


# A jump is only looked for where smooth noise would have to be this many of its deviations: looking everywhere would
# let the nearest of three values pass for the right one and make the noise look smaller than it is.
JUMP_BEYOND = 3.0


@dataclass(frozen=True)
class Residuals:
    """How far other logprobs of the same tokens are from a pass of the scorer; NaN where one of the two is missing.

    Attributes:
        value: [N] nats, other − scorer.
        unit: [N] nats per unit of logit noise.
        edge_value: [N] nats, other − the nearer of the two values with one token fewer or one more kept; NaN for none.
        edge_unit: [N] nats per unit of logit noise there.
    """

    value: F8
    unit: F8
    edge_value: F8
    edge_unit: F8

    @property
    def smooth(self) -> F8:
        """|value| / unit, [N]: the size of logit noise that would do it without a jump."""
        size: F8 = np.abs(self.value) / self.unit
        return size

    def settle(self, scale: float) -> Residuals:
        """Return the residuals with a jump in place of the smooth value where that explains a token much better.

        `value` and `unit` of such a token are those at the edge, but never below `JUMP_BEYOND` × scale.
        """
        line = JUMP_BEYOND * scale
        with np.errstate(invalid="ignore"):
            at_edge = np.maximum(np.abs(self.edge_value) / self.edge_unit, line)
            jumps = (self.smooth > line) & (at_edge < self.smooth)
        value = np.where(jumps, np.copysign(at_edge * self.edge_unit, self.value), self.value)
        return Residuals(value, np.where(jumps, self.edge_unit, self.unit), self.edge_value, self.edge_unit)


def residuals(run: Run, scores: Scores[Values], semantic: str, other: F8, *, logit_noise: float) -> Residuals:
    """Compare other logprobs with a pass, each token in its own unit.

    Noise on the logits moves a logprob in two ways: smoothly, by `gain` to first order, and by a jump when the
    token at the edge of top-p, top-k or min-p changes sides. The scores tell the two values of such a jump. Where the
    edge moves, top-p holds the kept mass near top-p, so the token responds as it does before truncation: a jump's unit
    is the gain of a two-way choice, sqrt(2) (1 − p × top-p) / T, where that is the larger one. Raw has no edge.

    Args:
        run: the tokens.
        scores: the pass that is compared with.
        semantic: "raw", or anything else for the forced processed values.
        other: [N] nats.
        logit_noise: rough size of the logit noise; it only sets where float32's resolution takes over.
    """
    finest = FLOAT32_RESOLUTION / max(logit_noise, 1e-9)
    gain, edges = scores.gain(semantic), scores.edge_logprobs
    edges = np.where(np.isfinite(edges) & (semantic != RAW), edges, np.nan)
    two_way = np.sqrt(2) * (1 - np.exp(np.minimum(edges, 0.0)) * run.kept_mass[:, None]) / run.temperature[:, None]
    edge_unit = np.hypot(np.fmax(two_way, gain[:, None]), finest)
    edge_value = other[:, None] - edges
    size = np.abs(edge_value) / edge_unit
    rows = np.arange(gain.size)
    pick = np.argmin(np.where(np.isfinite(size), size, np.inf), axis=1)
    value = other - scores.logprob(semantic)
    return Residuals(
        np.where(np.isfinite(value), value, np.nan),
        np.hypot(gain, finest),
        edge_value[rows, pick],
        edge_unit[rows, pick],
    )
