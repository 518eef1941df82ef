"""The verdict: which layer of mismatch, bottom-up, since which token, with what confidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tracekit.diagnose.causes import explain
from tracekit.diagnose.data import INFERENCE_PATH, NONE, SEMANTIC, Layer, Run
from tracekit.diagnose.events import CLEAR, Coincidence, coincide, events_of
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain import reading
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.facts import GRAVE, Facts, Noted
from tracekit.diagnose.kv import KvHypothesis, test_kv
from tracekit.diagnose.look import Look, OnPath, look
from tracekit.diagnose.masters import Masters, masters_factor
from tracekit.diagnose.metrics import Metrics, measure
from tracekit.diagnose.modules import Modules
from tracekit.diagnose.noise import NoiseFloor, TokenNoise
from tracekit.diagnose.onset import Onset, RolloutOnsets, earliest
from tracekit.diagnose.parts import Parts, split
from tracekit.diagnose.party import Party, not_judged, three_parties
from tracekit.diagnose.pooled import Change
from tracekit.diagnose.remarks import Remark, findings, limits, too_small
from tracekit.diagnose.semantic import Semantic
from tracekit.diagnose.sentinels import without
from tracekit.diagnose.trial import Tried
from tracekit.diagnose.withheld import withheld
from tracekit.scores import PROCESSED

EXPLAINED = 0.9  # of what a perfect replay would gain: what is left is noise


@dataclass(frozen=True)
class Verdict:
    """What a replay found, in codes and numbers.

    Attributes:
        layer: the lowest layer that fails.
        cause: code of the first of `causes`; where there is none, how values differ that nothing explains:
            "unexplained" in bulk, "leaves replay" from some token on; "none" where nothing differs.
        causes: what explains it, the lowest layer first, and in each what is proved, then what explains most.
        withheld: what could not be judged; where there is any, a run without divergence is not a pass.
        since: the first token of the first cause; without one the earliest onset of the run, null for none.
        since_rollout: index into `rollouts` of that token.
        semantic: what the recorded values are; its margin is the confidence, in nats.
        expect: what the trainer takes them for, raw or processed.
        before: metrics as the trainer sees them: recorded values against the replayed ones it expects.
        after: metrics once the semantic is right: recorded values against the replayed ones of their own kind.
        noise: this run's noise floor, for the semantic that onsets are judged with.
        rollouts: the onsets of every rollout, under the right semantic.
        num_with_onset: rollouts with a token beyond noise, or with a sustained shift.
        chance: probability that a clean run would look as bad.
        changes: the likeliest change of all rollouts together along each axis, however clear.
        coincidences: kinds of recorded events that onsets fall on more often than chance has it.
        kv: other histories of the KV against the recorded one, where weights changed within a rollout.
        masters: what casting the stored weights to the engine's dtype does, null where it does nothing.
        parts: what makes recorded and replayed values differ, where the engine ran again, else null.
        modules: each module of the model against its recorded input, where the engine was probed, else null.
        left: what remains for the inference path once a semantic mismatch is corrected; null where there is none.
        findings: other things the numbers say.
        noted: the gravest of what doctor and lint find in the same trace.
        limits: what was not tested, and what size of fault the noise hides.
        party: what the trainer's dump says, null without one.
    """

    layer: Layer
    cause: Literal[OnPath, Code]
    causes: list[Explanation]
    withheld: list[Remark]
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
    changes: list[Change]
    coincidences: list[Coincidence]
    kv: list[KvHypothesis]
    masters: Masters | None
    parts: Parts | None
    modules: Modules | None
    left: OnPath | None
    findings: list[Remark]
    noted: list[Noted]
    limits: list[Remark]
    party: Party | None = None


@dataclass(frozen=True)
class Judgement:
    """A verdict, and the noise of every token that it was made from."""

    verdict: Verdict
    tokens: TokenNoise


def judge(
    run: Run, *, expect: str = PROCESSED, facts: Facts | None = None, clip: tuple[float, float] | None = None
) -> Judgement:
    """Judge a scored run, bottom-up: the inference path is only blamed for what the semantic leaves.

    Args:
        run: recorded tokens and their scores.
        expect: "processed" or "raw", what the trainer takes the recorded values for.
        facts: what the trace says beside its tokens.
        clip: low and high part of the objective's clip range around 1, where it is known.
    """
    facts = facts or Facts()
    seen, causes = _explained(run, expect, facts)
    semantic, lens, judged, rollouts, on_path = seen.semantic, seen.lens, seen.judged, seen.rollouts, seen.on_path
    before, after = (_metrics(run, name) for name in (expect, lens))
    layer: Layer = NONE if on_path == "none" else INFERENCE_PATH
    since_rollout = None if layer == NONE else earliest(rollouts)
    since = None if since_rollout is None else rollouts[since_rollout].onset
    if causes:
        layer = causes[0].layer
        if causes[0].since or layer != INFERENCE_PATH:
            since, since_rollout = causes[0].since, causes[0].since_rollout
    kv = test_kv(run, judged, lens)
    party = three_parties(run, expect, causes, engine_is_off=on_path != "none", clip=clip)
    verdict = Verdict(
        layer=layer,
        cause=causes[0].code if causes else on_path,
        causes=causes,
        withheld=[*withheld(run, semantic, seen.noise, facts), *not_judged(party)],
        since=since,
        since_rollout=since_rollout,
        semantic=semantic,
        expect=expect,
        before=before,
        after=after,
        noise=judged.floor,
        rollouts=rollouts,
        num_with_onset=sum(r.onset is not None for r in rollouts),
        chance=seen.chance,
        changes=seen.changes,
        coincidences=_coincidences(run, rollouts, facts),
        kv=kv,
        masters=masters_factor(run, lens),
        parts=split(run, lens),
        modules=run.modules,
        left=_left(causes, on_path) if layer == SEMANTIC else None,
        findings=[*findings(run, semantic, before, kv, judged), *too_small(facts)],
        noted=[noted for noted in facts.noted if noted.severity in GRAVE],
        limits=limits(run, judged.floor, semantic),
        party=party,
    )
    return Judgement(verdict, judged)


def _explained(run: Run, expect: str, facts: Facts) -> tuple[Look, list[Explanation]]:
    """Look at a run and ask why; where all that is off is values that are no logprobs, the rest is judged by itself."""
    tried, seen = Tried(run), look(run, expect)
    if seen.on_path != "none" and tried.sentinels.any():
        beside = look(without(run, tried.sentinels), expect)
        causes = _ask(run, expect, facts, tried, beside) if beside.on_path == "none" else []
        if causes:
            return beside, causes
    return seen, _ask(run, expect, facts, tried, seen)


def _ask(run: Run, expect: str, facts: Facts, tried: Tried, seen: Look) -> list[Explanation]:
    diverges = seen.on_path != "none"
    return explain(Evidence(run, seen.noise, seen.semantic, expect, seen.lens, seen.rollouts, diverges, facts, tried))


def _coincidences(run: Run, rollouts: list[RolloutOnsets], facts: Facts) -> list[Coincidence]:
    bounds = np.searchsorted(run.rollout, np.arange(len(rollouts) + 1))
    onsets = [
        int(start + np.searchsorted(run.position[start:end], rollout.onset.position))
        for start, end, rollout in zip(bounds[:-1], bounds[1:], rollouts, strict=True)
        if rollout.onset
    ]
    sizes = {settings.get("block_size") for settings in facts.settings.values()}
    block_size = sizes.pop() if len(sizes) == 1 else None
    found = coincide(run, onsets, events_of(run, block_size if isinstance(block_size, int) else None))
    return [each for each in found if each.chance < CLEAR]


def _left(causes: list[Explanation], on_path: OnPath) -> OnPath | None:
    """What remains once the semantic is put right; None where the values were judged as they were, not put right."""
    fitted = [cause for cause in causes if cause.layer == SEMANTIC and cause.code != reading.CODE]
    if not fitted or on_path == "none":
        return on_path
    return "none" if sum(cause.share for cause in fitted) >= EXPLAINED else None


def _metrics(run: Run, lens: str) -> Metrics:
    scores = run.trainer
    kept = scores.kept_count if lens == PROCESSED else np.zeros_like(scores.kept_count)
    outside = np.isneginf(scores.processed_logprob) if lens == PROCESSED else np.zeros(kept.size, dtype=bool)
    return measure(run.rollout_logprob, scores.logprob(lens), kept, outside)
