"""Noise that is larger in some rollouts, at some places of them, or at single tokens, than in the run as a whole.

Rounding moves a value further where a context is long, repeats itself, or hangs on one earlier token: of clean bfloat16
rollouts of 2,200 tokens some had a quarter more noise than the others throughout, and one token was off by 1.5 nats in
the scorer's own other precision, where the run's noise would have given it 0.06. So the rollouts that a first look
accuses are scored in the other precision, too, and what that differs by says how much of their distance is noise. It
knows nothing of the record, so that no fault can raise its own line by it.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from tracekit.diagnose.data import ACCUSED, F8, Mask, Run
from tracekit.diagnose.residual import MEDIAN, residuals
from tracekit.scores import RAW

_WINDOW = 256  # tokens whose median difference is the noise of a place
_STRIDE = 32
_SPREAD = 2.0  # 1.2 is the deviation of a median of |x| over it, times the root of its tokens; this is 1.6 of them
_OWN = 3.0  # a token whose own difference is larger than this many deviations of noise has as much more


def local_noise(run: Run, telling: Mask, usual: float, scale: float) -> F8:
    """Return the noise of every token over that of the run, [N], no less than 1; 1 where nobody looked.

    Args:
        run: the tokens.
        telling: [N] tokens whose raw value can tell.
        usual: robust deviation of what another precision does to logits, over a sample of the run.
        scale: deviation of the noise that a clean engine's logits show.
    """
    found = np.ones(run.rollout.size)
    if ACCUSED not in run.scores or not usual > 0:
        return found
    size = np.abs(residuals(run, run.trainer, RAW, run.scores[ACCUSED].raw_logprob, 1.0).smooth)
    use = telling & np.isfinite(size)
    bounds = np.searchsorted(run.rollout, np.arange(len(run.rollouts) + 1))
    for begin, end in pairwise(bounds.tolist()):
        index = begin + np.flatnonzero(use[begin:end])
        if index.size:
            level = _levels(size[index] / (MEDIAN * usual))
            found[begin:end] = np.interp(np.arange(begin, end), index, level)
    own = np.where(np.isfinite(size), size, 0.0) / (_OWN * scale)
    noise: F8 = np.maximum(np.maximum(found, own), 1.0)
    return noise


def _levels(size: F8) -> F8:
    """Return what is sure of the noise at each of n tokens: of the whole, or of the place where that is more."""
    window = min(_WINDOW, size.size)
    centers = np.arange(0, size.size - window + 1, _STRIDE)
    medians = np.array([np.median(size[at : at + window]) for at in centers])
    places = np.interp(np.arange(size.size), centers + window / 2, medians) / (1 + _SPREAD / np.sqrt(window))
    levels: F8 = np.maximum(places, np.median(size) / (1 + _SPREAD / np.sqrt(size.size)))
    return levels
