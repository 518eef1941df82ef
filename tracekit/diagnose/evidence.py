"""What a detector gets, and what a detector is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, Mask, Run
from tracekit.diagnose.density import Density
from tracekit.diagnose.explanation import Explanation
from tracekit.diagnose.facts import Facts
from tracekit.diagnose.noise import TokenNoise
from tracekit.diagnose.onset import RolloutOnsets
from tracekit.diagnose.semantic import NEITHER, Semantic
from tracekit.diagnose.trial import Trial, Tried


@dataclass(frozen=True)
class Evidence:
    """A run, and what is known of it before anybody asks why.

    Attributes:
        run: the tokens and the passes that scored them.
        noise: of every token, under "raw" and under "processed".
        semantic: what the recorded values are.
        expect: what the trainer takes them for, "raw" or "processed".
        lens: the replayed values that come closest, "raw" or "processed".
        rollouts: the onsets of every rollout under that lens.
        diverges: whether they are beyond what chance gives a clean run.
        facts: what the trace says beside its tokens.
        tried: what hypotheses about the values are tried on.
        found: explanations of the causes that stand before this one in the table.
    """

    run: Run
    noise: Mapping[str, TokenNoise]
    semantic: Semantic
    expect: str
    lens: str
    rollouts: Sequence[RolloutOnsets]
    diverges: bool
    facts: Facts
    tried: Tried
    found: Sequence[Explanation] = ()

    @property
    def asks(self) -> bool:
        """Whether there are values that no reading explains, or that leave the one that does."""
        return self.semantic.kind == NEITHER or self.diverges

    def trial(self, lens: str, *, least_noise: float = 0.0) -> Trial | None:
        """Return the profiled tokens under a lens and the run's noise, or so much at least; None for none."""
        return self.tried.on(lens, Density.of(self.noise[lens].floor).wider(least_noise))

    @property
    def judged(self) -> TokenNoise:
        """The noise of every token under the lens."""
        return self.noise[self.lens]

    @property
    def d(self) -> F8:
        """[N] replayed − recorded under the lens, nats."""
        return self.judged.d

    @property
    def usable(self) -> Mask:
        """[N] tokens that can tell something: finite, and with noise of a known size."""
        usable: Mask = np.isfinite(self.d) & (self.judged.sigma > 0)
        return usable


Detector = Callable[[Evidence], list[Explanation]]
"""Pure: numbers in, explanations out. What it returns is a finding, so it answers for its own false alarms."""
