"""Sampling settings put to the test on profiled tokens: how likely they make the recorded values, and the choices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import log
from typing import Any

import numpy as np

from tracekit.diagnose.data import I8, Mask, Run
from tracekit.diagnose.density import Density
from tracekit.diagnose.part import Part, best_part
from tracekit.diagnose.profile import Predicted, Profile, predict
from tracekit.diagnose.sentinels import sentinels
from tracekit.diagnose.settings import F8, Settings, neutral
from tracekit.scores import RAW

_OUTSIDE = log(1e-4)  # of a token that the kept set does not hold: noise moves its edge now and then


@dataclass(frozen=True)
class Trial:
    """Profiled tokens [n] that all settings are tried on."""

    index: I8  # which tokens of the run
    profile: Profile
    settings: Settings
    recorded: F8  # logprobs, nats
    engine_step: I8
    rollout: I8
    density: Density

    def __getitem__(self, rows: Any) -> Trial:
        """Return the trial on some of its tokens."""
        columns = (self.index, self.profile, self.settings, self.recorded, self.engine_step, self.rollout)
        return Trial(*(column[rows] for column in columns), self.density)  # type: ignore[arg-type,call-arg]

    def predict(self, settings: Settings) -> Predicted:
        """Return what a sampler with these settings would have said."""
        return predict(self.profile, settings)

    def weigh(self, settings: Settings, density: Density | None = None) -> F8:
        """[n] log density of the recorded values, nats."""
        return self.weigh_told(self.predict(settings), density)

    def weigh_told(self, told: Predicted, density: Density | None = None) -> F8:
        """[n] the same of a prediction."""
        return (density or self.density).at(self.recorded - told.logprob, told.gain)

    def attempt(self, after: F8, before: F8, usual: F8) -> Attempt:
        """Return where values that weigh `after` beat those that weigh `before`, [n] each.

        Args:
            after: log densities under the hypothesis.
            before: log densities without it.
            usual: log densities that a perfect prediction may expect.
        """
        return attempt(after, before, usual, self.engine_step, self.rollout)


@dataclass(frozen=True)
class Attempt:
    """What a hypothesis gains where it holds."""

    part: Part
    share: float  # of what a perfect prediction would gain, at most 1; 0 where there is nothing to gain

    def enough(self, nats: float, share: float) -> bool:
        """Whether it gains at least so much."""
        return self.part.nats >= nats and self.share >= share


def attempt(after: F8, before: F8, usual: F8, engine_step: I8, rollout: I8) -> Attempt:
    """Return where a hypothesis is ahead on n tokens, see `Trial.attempt`."""
    part = best_part(after - before, engine_step, rollout)
    perfect = float((usual - before).sum())
    return Attempt(part, min(part.nats / perfect, 1.0) if perfect > 0 else 0.0)


class Tried:
    """What all detectors try their hypotheses on, made once for a run."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @cached_property
    def sentinels(self) -> Mask:
        """[N] recorded values that are no logprobs."""
        return sentinels(self._run)

    def on(self, lens: str, density: Density) -> Trial | None:
        """Return the trial on all profiled tokens; None where there is none.

        Args:
            lens: "raw" for settings that change nothing, else the recorded ones.
            density: of the noise.
        """
        base = self._profiled
        if base is None:
            return None
        settings = neutral(base.index.size) if lens == RAW else base.settings
        return replace(base, settings=settings, density=density)

    @cached_property
    def _profiled(self) -> Trial | None:
        run = self._run
        if run.profile is None or run.settings is None:
            return None
        settings = run.settings[run.profile.index]
        use = (run.valid & ~self.sentinels)[run.profile.index] & settings.whole & ~settings.greedy
        if not use.any():
            return None
        profile, index = run.profile[use], run.profile.index[use]
        columns = (run.rollout_logprob[index], run.engine_step[index], run.rollout[index])
        return Trial(index, profile, settings[use], *columns, Density(1.0, 1.0))


def choices(trial: Trial, settings: Settings) -> float:
    """Return the log probability of all tokens that were drawn, whatever was recorded of them."""
    told = trial.predict(settings)
    own = np.where(told.inside, told.logprob, _OUTSIDE)
    return float(own[np.isfinite(own)].sum())


def blended(other: F8, recorded: F8) -> F8:
    """Return the log densities of a hypothesis, or as if it held for half of the tokens where that is likelier."""
    mixed: F8 = np.logaddexp(other, recorded) - log(2)
    return other if other.sum() >= mixed.sum() else mixed
