"""One look at a run: its noise, what its values are, its onsets, and whether the inference path has to answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tracekit.diagnose.chance import chance_of
from tracekit.diagnose.data import Run
from tracekit.diagnose.noise import TokenNoise, measure_noises
from tracekit.diagnose.onset import RolloutOnsets, find_onsets
from tracekit.diagnose.pooled import Change, find_changes
from tracekit.diagnose.semantic import NEITHER, SAME, Semantic, tell_semantic

CHANCE = 0.002  # share of clean runs that may be called divergent

OnPath = Literal["none", "unexplained", "leaves replay"]
"""Nothing; values in bulk further off than noise under every reading; rollouts that leave their replay from some token
on."""


@dataclass(frozen=True)
class Look:
    """What is known of a run before anybody asks why; see `tracekit.diagnose.evidence.Evidence`."""

    noise: Mapping[str, TokenNoise]
    semantic: Semantic
    lens: str
    rollouts: list[RolloutOnsets]
    changes: list[Change]
    chance: float
    on_path: OnPath

    @property
    def judged(self) -> TokenNoise:
        """The noise of every token under the lens."""
        return self.noise[self.lens]


def look(run: Run, expect: str) -> Look:
    """Look at a run whose trainer takes the values for `expect`, "processed" or "raw"."""
    noise = measure_noises(run)
    semantic = tell_semantic(run, noise)
    lens = expect if semantic.kind == SAME else semantic.lens
    judged = noise[lens]
    rollouts = find_onsets(run, run.trainer.logprob(lens), judged)
    changes = find_changes(run, judged.z, judged.telling)
    chance = chance_of(run, judged, changes)
    return Look(noise, semantic, lens, rollouts, changes, chance, _on_path(semantic, chance))


def _on_path(semantic: Semantic, chance: float) -> OnPath:
    """What the inference path has to answer for, the semantic put right."""
    if semantic.kind == NEITHER:
        return "unexplained"
    return "leaves replay" if chance < CHANCE else "none"
