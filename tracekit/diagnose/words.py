"""The sentences of a verdict."""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import INFERENCE_PATH, PROCESSED, RAW, SEMANTIC, Run
from tracekit.diagnose.metrics import Metrics
from tracekit.diagnose.noise import NoiseFloor
from tracekit.diagnose.semantic import NEITHER, SAME, UNDECIDED, Semantic

_REMEDY = {
    RAW: "record with logprobs_mode=processed_logprobs, or let the trainer compare raw logprobs",
    PROCESSED: "let the trainer apply the recorded temperature and truncation, or record with raw_logprobs",
}


def cause(layer: str, semantic: Semantic, expect: str, with_onset: int, num_rollouts: int) -> str:
    """Say what is wrong, and what to do where that is known."""
    if layer == SEMANTIC:
        remedy = _REMEDY.get(
            semantic.closest, "give the trainer the sampling parameters that the engine really applied"
        )
        return f"The engine recorded {semantic.closest} logprobs and the trainer expects {expect} ones: {remedy}."
    if layer == INFERENCE_PATH and semantic.kind == NEITHER:
        return (
            f"The recorded values are closest to {semantic.closest} logprobs, but their bulk is {semantic.excess:.1f} "
            "times further off than this run's noise allows: other weights, other sampling values or other kernels "
            "made them than were recorded or replayed."
        )
    if layer == INFERENCE_PATH:
        return (
            f"The numbers mean what the trainer expects, but {with_onset} of {num_rollouts} rollouts leave their "
            "replay by more than this run's noise: the engine took the same tokens along another path."
        )
    return "The recorded values mean what the trainer expects and stay within this run's noise."


def left(layer: str, path_fails: bool, semantic: Semantic, with_onset: int, num_rollouts: int) -> str:
    """Say what a corrected semantic leaves for the layer above."""
    if layer != SEMANTIC:
        return ""
    if semantic.kind == NEITHER:
        return (
            f"Even against {semantic.closest} values the residuals are {semantic.excess:.1f} times beyond noise: the "
            "inference path differs, too."
        )
    if path_fails:
        return (
            f"Under the right semantic {with_onset} of {num_rollouts} rollouts still leave their replay beyond noise."
        )
    return "Under the right semantic nothing beyond noise is left for the inference path."


def findings(run: Run, semantic: Semantic, metrics: Metrics) -> list[str]:
    """Say what else the numbers show."""
    found = []
    if semantic.contradicts_declared:
        found.append(
            f"The engine declares {', '.join(semantic.declared)}, but its values are {semantic.closest} ones "
            f"(by {semantic.margin:.0f} nats)."
        )
    if len(semantic.declared) > 1:
        found.append(f"The engines of this trace declare different modes: {', '.join(semantic.declared)}.")
    if metrics.num_not_finite:
        first = int(np.flatnonzero(~run.valid)[0])
        where = run.rollouts[int(run.rollout[first])]
        found.append(
            f"{metrics.num_not_finite} recorded logprobs are NaN or infinite, the first at position "
            f"{int(run.position[first])} of request {where.request}; they enter no number here."
        )
    positive = int(np.count_nonzero(run.rollout_logprob[run.valid] > 0))
    if positive:
        found.append(f"{positive} recorded values are above 0, which no log-probability is.")
    if metrics.num_outside:
        found.append(
            f"{metrics.num_outside} recorded tokens are outside the scorer's own kept set; each is scored as if it "
            "were let in."
        )
    return found


def limits(run: Run, noise: NoiseFloor, semantic: Semantic) -> list[str]:
    """Say what was not tested."""
    said = [
        f"A token of median response must be off by {noise.detectable:.3f} nats to be beyond noise; smaller faults are "
        "hidden from one token at a time.",
        "Head and log-softmax are float32 here; an engine whose head is not adds that to its noise.",
    ]
    if semantic.kind == SAME:
        said.append("Temperature 1 and no truncation: raw and processed are the same numbers and cannot be told apart.")
    if semantic.kind == UNDECIDED:
        said.append(
            f"{semantic.closest} and {semantic.runner_up} fit equally well ({semantic.margin:.1f} nats), "
            "so they are not told apart."
        )
    versions = np.unique(np.stack([run.rollout, run.weight_version]), axis=1)
    if np.any(np.bincount(versions[0]) > 1):
        said.append(
            "Where weights changed within a rollout, KV was recomputed under the weights of each token: KV that the "
            "engine kept from older weights is not modelled."
        )
    if noise.capped:
        said.append(
            "The recorded values are noisier than an engine about as exact as the scorer would make them; "
            "sigma does not follow them."
        )
    return said
