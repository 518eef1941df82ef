"""Student's t: fit of residuals with a per-token unit, and its tail, in numpy alone."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp, lgamma, log, pi, sqrt

import numpy as np

from tracekit.diagnose.data import F8

TAILS = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0)


@dataclass(frozen=True)
class Fit:
    """Residuals seen as scale × unit × Student-t noise.

    Attributes:
        scale: common scale, in multiples of the per-token unit.
        degrees: degrees of freedom; small means heavy tails.
        log_likelihood: nats, summed over the tokens.
        num_tokens: residuals that entered.
    """

    scale: float
    degrees: float
    log_likelihood: float
    num_tokens: int


def fit_student(residual: F8, unit: F8, *, tails: tuple[float, ...] = TAILS, smallest: float = 1e-3) -> Fit:
    """Fit scale and degrees of freedom by maximum likelihood.

    Args:
        residual: [N] nats, finite.
        unit: [N] nats, positive.
        tails: degrees of freedom to choose from.
        smallest: a floor under the scale, so that residuals that are all zero have a finite likelihood.
    """
    if residual.size == 0:
        return Fit(float("nan"), max(tails), 0.0, 0)
    squared = (residual / unit) ** 2
    fits = [_fit_scale(squared, nu, smallest) for nu in tails]
    best = max(fits, key=lambda fit: fit.log_likelihood)
    return Fit(best.scale, best.degrees, best.log_likelihood - float(np.log(unit).sum()), best.num_tokens)


def _fit_scale(squared: F8, degrees: float, smallest: float) -> Fit:
    variance = max(float(np.median(squared)), smallest**2)
    for _ in range(100):  # expectation-maximisation
        weight = (degrees + 1) / (degrees + squared / variance)
        update = max(float((weight * squared).mean()), smallest**2)
        converged = abs(update - variance) <= 1e-8 * variance
        variance = update
        if converged:
            break
    terms = _log_constant(degrees) - 0.5 * (degrees + 1) * np.log1p(squared / (degrees * variance))
    return Fit(sqrt(variance), degrees, float(terms.sum()) - squared.size * 0.5 * log(variance), int(squared.size))


def _log_constant(degrees: float) -> float:
    return lgamma((degrees + 1) / 2) - lgamma(degrees / 2) - 0.5 * log(degrees * pi)


def log_density(z: F8, degrees: float) -> F8:
    """Of Student's t, up to a constant: 0 at z = 0, nats."""
    density: F8 = -0.5 * (degrees + 1) * np.log1p(z**2 / degrees)
    return density


def ahead(one: F8, other: F8, sigma: F8, degrees: float) -> F8:
    """Return by how many nats residuals `one` are likelier than `other`, [N] each."""
    return log_density(one / sigma, degrees) - log_density(other / sigma, degrees)


def two_sided_tail(x: float, degrees: float) -> float:
    """Return P(|t| > x), by integrating cos^(degrees − 1): t = sqrt(degrees) tan(angle)."""
    low = np.arctan(x / sqrt(degrees))
    angle, step = np.linspace(low, pi / 2, 4001, retstep=True)
    values = np.cos(angle) ** (degrees - 1)
    area = float(values.sum() - 0.5 * (values[0] + values[-1])) * float(step)
    return 2 * exp(_log_constant(degrees)) * sqrt(degrees) * area


def two_sided_quantile(share_beyond: float, degrees: float) -> float:
    """Return x with P(|t| > x) = share_beyond, by bisection."""
    low, high = 0.0, 1.0
    while two_sided_tail(high, degrees) > share_beyond:
        high *= 2
    for _ in range(60):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if two_sided_tail(middle, degrees) > share_beyond else (low, middle)
    return high
