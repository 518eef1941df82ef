"""How likely recorded values are, given what a hypothesis predicts and the noise of the run."""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma, log, pi

import numpy as np

from tracekit.diagnose.noise import NoiseFloor
from tracekit.diagnose.settings import F8

OUTLIERS = 1e-3  # share of tokens that no hypothesis need explain: the edge of a kept set moved by noise, say
_HEAVIEST = 4.0  # degrees of freedom: a search finds no way from far off in thinner tails
_SPREAD = 20.0  # nats over which those lie
_SMALLEST_GAIN = 0.02  # keeps a token with next to no choice from outweighing all others


@dataclass(frozen=True)
class Density:
    """Student's t around the prediction, its scale the logit noise of the run times the token's response, and outliers.

    The scale is the run's own, not fitted to what is judged, so that log densities of tokens can be added up over any
    part of a run; outliers bound by how much one token counts.
    """

    logit_noise: float
    degrees: float

    @classmethod
    def of(cls, floor: NoiseFloor) -> Density:
        """Return the density under a run's noise."""
        return cls(floor.scale, min(floor.degrees, _HEAVIEST))

    def wider(self, logit_noise: float) -> Density:
        """Return one with at least so much noise."""
        return Density(max(self.logit_noise, logit_noise), self.degrees)

    def at(self, residual: F8, gain: F8) -> F8:
        """[n] log density, nats, of recorded − predicted; of tokens whose prediction is NaN that of an outlier.

        Args:
            residual: [n] nats.
            gain: [n] first-order response of the prediction to noise on the logits.
        """
        outlier = log(OUTLIERS / _SPREAD)
        nu, sigma = self.degrees, self.logit_noise * np.hypot(gain, _SMALLEST_GAIN)
        constant = lgamma((nu + 1) / 2) - lgamma(nu / 2) - 0.5 * log(nu * pi) + np.log1p(-OUTLIERS)
        with np.errstate(over="ignore", invalid="ignore"):
            inside = constant - np.log(sigma) - 0.5 * (nu + 1) * np.log1p((residual / sigma) ** 2 / nu)
        density: F8 = np.logaddexp(np.where(np.isfinite(inside), inside, -np.inf), outlier)
        return density

    def usual(self, gain: F8) -> F8:
        """[n] log density of a residual of median size: what a perfect prediction may expect."""
        return self.at(0.75 * self.logit_noise * np.hypot(gain, _SMALLEST_GAIN), gain)
