"""Ranges of token ids put to the test on profiled tokens: barred, or lifted by a bias."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracekit.diagnose.data import F8, I8
from tracekit.diagnose.density import Density
from tracekit.diagnose.profile import Bias, Predicted, predict
from tracekit.diagnose.settings import neutral
from tracekit.diagnose.trial import Trial

FEW = 512  # tokens that ranges are searched on
WIDE = 0.02  # logit noise under which a range that is nearly right beats none
_BLUR = 0.1  # nats for all of the mass that a profile does not list: of it a range takes more or less than is known


class Blurred:
    """A trial under noise that also holds what is not known of the tokens that a profile does not list one by one."""

    def __init__(self, trial: Trial, least_noise: float = 0.0) -> None:
        self.trial = trial
        self._density: Density = trial.density.wider(least_noise)
        told = trial.predict(neutral(trial.index.size))
        listed = np.exp(trial.profile.logits - trial.profile.logits[:, :1] + told.first[:, None]).sum(axis=1)
        self._unlisted = _BLUR * np.clip(1.0 - listed, 0.0, 1.0) / self._density.logit_noise

    def weigh(self, told: Predicted) -> F8:
        """[n] log density of the recorded values, nats."""
        return self._density.at(self.trial.recorded - told.logprob, np.hypot(told.gain, self._unlisted))

    def usual(self, told: Predicted) -> F8:
        """[n] the same of what a perfect prediction may expect."""
        return self._density.usual(np.hypot(told.gain, self._unlisted))

    def barring(self, ids: I8) -> F8:
        """[n] log density where these ids are barred."""
        return self.weigh(predict(self.trial.profile, self.trial.settings, barred=ids))

    def lifting(self, bias: Bias) -> F8:
        """[n] log density where the logits of some ids are biased."""
        return self.weigh(predict(self.trial.profile, self.trial.settings, bias=bias))


def few(trial: Trial) -> Trial:
    """Return the trial on at most `FEW` tokens, spread evenly."""
    return trial[np.unique(np.linspace(0, trial.index.size - 1, min(FEW, trial.index.size)).astype(np.int64))]


def mass_of(trial: Trial) -> dict[int, float]:
    """Return how often each id should have been drawn, of those that profiles list."""
    told = trial.predict(neutral(trial.index.size))
    p = np.exp(trial.profile.logits - trial.profile.logits[:, :1] + told.first[:, None])
    ids, inverse = np.unique(trial.profile.ids, return_inverse=True)
    sums = np.bincount(inverse.ravel(), weights=np.nan_to_num(p).ravel())
    return {int(i): float(s) for i, s in zip(ids, sums, strict=True) if i >= 0}


def in_words(ranges: Sequence[I8]) -> list[str]:
    """Return "first to last" of each range, in their order."""
    return [
        f"{ids[0]}" if ids.size == 1 else f"{ids[0]} to {ids[-1]}" for ids in sorted(ranges, key=lambda r: int(r[0]))
    ]
