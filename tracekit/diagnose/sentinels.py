"""Recorded values that are no logprobs: what a framework or an engine writes where it has none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tracekit.diagnose.data import F8, Mask, Run
from tracekit.scores import PROCESSED, RAW

IMPOSSIBLE = -500.0  # nats: no sampler draws a token of this logprob
FEW = 0.1  # of all values
REPEATED = 3  # the same round number that often, far off each time, is no coincidence
_FAR = 0.5  # nats


def sentinels(run: Run) -> Mask:
    """[N] impossible values, zeros of tokens that were not certain, round numbers that come back, and a floor."""
    recorded = run.rollout_logprob
    far = np.isfinite(recorded)
    for lens in (RAW, PROCESSED):  # neither may come near, nor with a token more or less in the kept set
        far &= np.abs(run.trainer.logprob(lens) - recorded) > _FAR
    with np.errstate(invalid="ignore"):
        far &= ~np.any(np.abs(run.trainer.edge_logprobs - recorded[:, None]) <= _FAR, axis=1)
    _, inverse, counts = np.unique(recorded, return_inverse=True, return_counts=True)
    always = np.bincount(inverse, weights=~far) == 0
    found: Mask = (run.valid & (recorded <= IMPOSSIBLE)) | (far & (recorded == 0.0))
    positive = far & (recorded > 0.0)  # of many values it is their unit, or what was added to them
    if np.count_nonzero(positive) < FEW * np.count_nonzero(run.valid):
        found |= positive
    found |= far & (always & (counts >= REPEATED))[inverse] & _is_round(recorded)
    return found | _at_floor(run, far)


def _at_floor(run: Run, far: Mask) -> Mask:
    """[N] the least value of all, where it stands for values that are smaller: log(p + 1e-4), or a clamp."""
    recorded = run.rollout_logprob
    floor: Mask = run.valid & (recorded == np.min(recorded[run.valid], initial=0.0))
    below = np.fmin(run.trainer.raw_logprob, run.trainer.logprob(PROCESSED)) < recorded + _FAR
    return floor if np.count_nonzero(floor & far) >= REPEATED and np.all(below[floor]) else np.zeros_like(floor)


def without(run: Run, which: Mask) -> Run:
    """Return the run as if nothing had been recorded for some tokens, [N], and for those that have the same values."""
    recorded = run.rollout_logprob
    return replace(run, rollout_logprob=np.where(np.isin(recorded, recorded[which]), np.nan, recorded))


def _is_round(values: F8) -> Mask:
    """Whether a person would have written them: a measured value is no multiple of a hundredth."""
    hundredths = values * 100
    with np.errstate(invalid="ignore"):
        mask: Mask = np.abs(hundredths - np.round(hundredths)) < 1e-6 * np.maximum(np.abs(hundredths), 1)
    return mask
