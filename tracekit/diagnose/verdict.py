"""The verdict: which layer of mismatch, bottom-up, since which token, with what confidence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.causes import Cause
from tracekit.diagnose.chance import chance_of
from tracekit.diagnose.data import INFERENCE_PATH, NONE, SEMANTIC, Layer, Run
from tracekit.diagnose.kv import KvHypothesis, test_kv
from tracekit.diagnose.masters import Masters, masters_factor
from tracekit.diagnose.metrics import Metrics, measure
from tracekit.diagnose.noise import NoiseFloor, TokenNoise, measure_noise
from tracekit.diagnose.onset import Onset, RolloutOnsets, find_onsets
from tracekit.diagnose.remarks import Remark, findings, limits
from tracekit.diagnose.semantic import MARGIN, NEITHER, SAME, Semantic, differ, tell_semantic
from tracekit.scores import PROCESSED, RAW

CHANCE = 0.01  # share of clean runs that may be called divergent


@dataclass(frozen=True)
class Verdict:
    """What a replay found, in codes and numbers.

    Attributes:
        layer: the lowest layer that fails.
        cause: what is wrong there.
        since: the earliest onset of the run in the comparison that names the layer, null for none.
        since_rollout: index into `rollouts` of that token.
        semantic: what the recorded values are; its margin is the confidence, in nats.
        expect: what the trainer takes them for, raw or processed.
        before: metrics as the trainer sees them: recorded values against the replayed ones it expects.
        after: metrics once the semantic is right: recorded values against the replayed ones of their own kind.
        noise: this run's noise floor, for the semantic that onsets are judged with.
        rollouts: the onsets of every rollout, under the right semantic.
        num_with_onset: rollouts with a token beyond noise, or with a sustained shift.
        chance: probability that a clean run would show that many.
        kv: other histories of the KV against the recorded one, where weights changed within a rollout.
        masters: what casting the stored weights to the engine's dtype does, null where it does nothing.
        left: what remains for the inference path once a semantic mismatch is corrected; null where there is none.
        findings: other things the numbers say.
        limits: what was not tested, and what size of fault the noise hides.
    """

    layer: Layer
    cause: Cause
    since: Onset | None
    since_rollout: int | None
    semantic: Semantic
    expect: str
    before: Metrics
    after: Metrics
    noise: NoiseFloor
    rollouts: list[RolloutOnsets]
    num_with_onset: int
    chance: float
    kv: list[KvHypothesis]
    masters: Masters | None
    left: Cause | None
    findings: list[Remark]
    limits: list[Remark]


@dataclass(frozen=True)
class Judgement:
    """A verdict, and the noise of every token that it was made from."""

    verdict: Verdict
    tokens: TokenNoise


def judge(run: Run, *, expect: str = PROCESSED) -> Judgement:
    """Judge a scored run, bottom-up: the inference path is only blamed for what the semantic leaves.

    Args:
        run: recorded tokens and their scores.
        expect: "processed" or "raw", what the trainer takes the recorded values for.
    """
    noise = {name: measure_noise(run, name) for name in (RAW, PROCESSED)}
    semantic = tell_semantic(run, noise)
    lens = expect if semantic.kind == SAME else semantic.lens
    judged = noise[lens]
    before, after = (_metrics(run, name) for name in (expect, lens))
    rollouts = find_onsets(run, run.trainer.logprob(lens), judged)
    chance = chance_of(run, judged)
    on_path = _on_path(semantic, chance)
    layer, cause = (NONE if on_path == "none" else INFERENCE_PATH), on_path
    if advantage(semantic, expect) >= MARGIN and _changes(run, semantic, expect, noise):
        layer, cause = SEMANTIC, "other reading"
    shown = _shown(layer, run, expect, noise, rollouts)
    since_rollout = _first_rollout(shown)
    kv = test_kv(run, judged, lens)
    verdict = Verdict(
        layer=layer,
        cause=cause,
        since=None if since_rollout is None else shown[since_rollout].onset,
        since_rollout=since_rollout,
        semantic=semantic,
        expect=expect,
        before=before,
        after=after,
        noise=judged.floor,
        rollouts=rollouts,
        num_with_onset=sum(r.onset is not None for r in rollouts),
        chance=chance,
        kv=kv,
        masters=masters_factor(run, lens),
        left=on_path if layer == SEMANTIC else None,
        findings=findings(run, semantic, before, kv),
        limits=limits(run, judged.floor, semantic),
    )
    return Judgement(verdict, judged)


def advantage(semantic: Semantic, expect: str) -> float:
    """Return by how many nats the closest reading beats the expected one; 0 where they are the same."""
    if not semantic.hypotheses:
        return 0.0
    by_name = {h.name: h.log_likelihood for h in semantic.hypotheses}
    return by_name[semantic.closest] - by_name[expect]


def _metrics(run: Run, lens: str) -> Metrics:
    scores = run.trainer
    kept = scores.kept_count if lens == PROCESSED else np.zeros_like(scores.kept_count)
    outside = np.isneginf(scores.processed_logprob) if lens == PROCESSED else np.zeros(kept.size, dtype=bool)
    return measure(run.rollout_logprob, scores.logprob(lens), kept, outside)


def _on_path(semantic: Semantic, chance: float) -> Cause:
    """What the inference path has to answer for, the semantic put right."""
    if semantic.kind == NEITHER:
        return "unexplained"
    return "leaves replay" if chance < CHANCE else "none"


def _changes(run: Run, semantic: Semantic, expect: str, noise: dict[str, TokenNoise]) -> bool:
    return semantic.lens == expect or differ(run, semantic.lens, expect, noise)


def _shown(
    layer: Layer, run: Run, expect: str, noise: dict[str, TokenNoise], rollouts: list[RolloutOnsets]
) -> list[RolloutOnsets]:
    """The onsets in the comparison that names the layer."""
    if layer == SEMANTIC:
        return find_onsets(run, run.trainer.logprob(expect), noise[expect])
    return rollouts if layer == INFERENCE_PATH else []


def _first_rollout(rollouts: list[RolloutOnsets]) -> int | None:
    """The rollout whose onset was sampled first."""
    starts = [(r.onset.engine_step, i) for i, r in enumerate(rollouts) if r.onset]
    return min(starts)[1] if starts else None
