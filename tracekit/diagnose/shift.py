"""A sustained shift within a rollout: many tokens a little too far off, from one token to the end.

Under the null the standardized residuals of a clean run follow the Student's t that was fitted to this run's
self-differences. Under the alternative their scale is larger by a factor from some token on. The mean over all starting
tokens and factors of the likelihood ratios is an e-value: its expectation is 1 on clean rollouts, so that it reaches
1/alpha with probability alpha at most (Markov; see Vovk and Wang, "E-values", Annals of Statistics 2021). E-values of
rollouts may be averaged into one of the run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, I8, Mask

FACTORS = (1.5, 2.0, 4.0, 8.0)  # how much larger the residuals may have become
FALSE_ALARM = 0.01
_CAP = 600.0  # nats: exp stays finite


@dataclass(frozen=True)
class Shifts:
    """Evidence for a sustained shift, one entry per rollout.

    Attributes:
        log_e: [R] log of the e-value, nats.
        start: [R] index into the run's tokens where the shift most likely starts; -1 where no token could tell.
    """

    log_e: F8
    start: I8

    @property
    def sure(self) -> Mask:
        """[R] rollouts whose evidence a clean one reaches with probability `FALSE_ALARM` at most."""
        mask: Mask = self.log_e >= -np.log(FALSE_ALARM)
        return mask


def find_shifts(z: F8, usable: Mask, rollout: I8, num_rollouts: int, degrees: float) -> Shifts:
    """Weigh every rollout.

    Args:
        z: [N] residuals over sigma.
        usable: [N] tokens that can tell: finite, and with a free choice.
        rollout: [N] index of the token's rollout, non-decreasing.
        num_rollouts: R.
        degrees: of the null's Student's t.
    """
    bounds = np.searchsorted(rollout, np.arange(num_rollouts + 1))
    log_e, start = np.zeros(num_rollouts), np.full(num_rollouts, -1, dtype=np.int64)
    ratio = _log_ratios(z, degrees)
    for i in range(num_rollouts):
        index = bounds[i] + np.flatnonzero(usable[bounds[i] : bounds[i + 1]])
        if not index.size:
            continue
        from_here = np.cumsum(ratio[:, index][:, ::-1], axis=1)[:, ::-1]  # [factor, start]
        by_start = _log_mean_exp(np.minimum(from_here, _CAP), axis=0)
        log_e[i] = _log_mean_exp(by_start, axis=0)
        start[i] = index[int(np.argmax(by_start))]
    return Shifts(log_e, start)


def log_e_of_run(shifts: Shifts) -> float:
    """Return the log e-value of the whole run: the mean of its rollouts' e-values."""
    return float(_log_mean_exp(shifts.log_e, axis=0)) if shifts.log_e.size else 0.0


def _log_ratios(z: F8, degrees: float) -> F8:
    """[factor, N] log density of z with its scale larger by the factor, over that with scale 1."""
    squared = np.where(np.isfinite(z), z, 0.0) ** 2
    power = -0.5 * (degrees + 1)
    null = power * np.log1p(squared / degrees)
    wider: F8 = np.stack([power * np.log1p(squared / (degrees * c * c)) - np.log(c) for c in FACTORS])
    return wider - null


def _log_mean_exp(values: F8, axis: int) -> F8:
    top = values.max(axis=axis)
    out: F8 = top + np.log(np.mean(np.exp(values - np.expand_dims(top, axis)), axis=axis))
    return out
