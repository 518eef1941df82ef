"""Sampling settings put to the test on profiled tokens: how likely they make the recorded values, and the choices."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np

from tracekit.diagnose.data import I8, Run
from tracekit.diagnose.density import Density
from tracekit.diagnose.profile import Predicted, Profile, predict
from tracekit.diagnose.sentinels import sentinels
from tracekit.diagnose.settings import F8, Settings

_OUTSIDE = log(1e-4)  # of a token that the kept set does not hold: noise moves its edge now and then


@dataclass(frozen=True)
class Trial:
    """Profiled tokens [n] that all settings are tried on."""

    index: I8  # which tokens of the run
    profile: Profile
    settings: Settings
    recorded: F8  # logprobs, nats
    density: Density

    def __getitem__(self, rows: Any) -> Trial:
        """Return the trial on some of its tokens."""
        parts = (self.index[rows], self.profile[rows], self.settings[rows], self.recorded[rows])
        return Trial(*parts, self.density)

    def predict(self, settings: Settings) -> Predicted:
        """Return what a sampler with these settings would have said."""
        return predict(self.profile, settings)

    def weigh(self, settings: Settings, density: Density | None = None) -> F8:
        """[n] log density of the recorded values, nats."""
        return self.weigh_told(self.predict(settings), density)

    def weigh_told(self, told: Predicted, density: Density | None = None) -> F8:
        """[n] the same of a prediction."""
        return (density or self.density).at(self.recorded - told.logprob, told.gain)


def trial_of(run: Run, density: Density) -> Trial | None:
    """Return the trial on all tokens on which sampling settings can be tried; None where there is none."""
    if run.profile is None or run.settings is None:
        return None
    settings = run.settings[run.profile.index]
    use = (run.valid & ~sentinels(run))[run.profile.index] & settings.whole & ~settings.greedy
    if not use.any():
        return None
    profile = run.profile[use]
    return Trial(profile.index, profile, settings[use], run.rollout_logprob[profile.index], density)


def choices(trial: Trial, settings: Settings) -> float:
    """Return the log probability of all tokens that were drawn, whatever was recorded of them."""
    told = trial.predict(settings)
    own = np.where(told.inside, told.logprob, _OUTSIDE)
    return float(own[np.isfinite(own)].sum())


def blended(other: F8, recorded: F8) -> F8:
    """Return the log densities of a hypothesis, or as if it held for half of the tokens where that is likelier."""
    mixed: F8 = np.logaddexp(other, recorded) - log(2)
    return other if other.sum() >= mixed.sum() else mixed
