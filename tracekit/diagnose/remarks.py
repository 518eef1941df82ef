"""What else a verdict has to tell, as codes and numbers: findings, limits of what was tested, what is withheld."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tracekit.diagnose.data import Run
from tracekit.diagnose.facts import Facts
from tracekit.diagnose.kv import KvHypothesis
from tracekit.diagnose.metrics import Metrics
from tracekit.diagnose.noise import NoiseFloor, TokenNoise, robust_deviation
from tracekit.diagnose.semantic import MARGIN, SAME, UNDECIDED, Semantic

Code = Literal[
    # findings
    "declared otherwise",
    "modes differ",
    "above zero",
    "outside the kept set",
    "whole run",
    "values say kv recomputed",
    "values say kv kept",
    "update below resolution",
    # limits
    "detectable",
    "float32 head",
    "same numbers",
    "not told apart",
    "kv recomputed",
    # what is withheld
    "not judged",
    "not finite",
    "meaning not known",
    "not joined",
    "not compared",
]


@dataclass(frozen=True)
class Remark:
    """One finding, one limit, or one thing that is withheld.

    Attributes:
        code: what it is.
        numbers: by name, what belongs to it: `count` of tokens, `position` and `request` of the first of them, `nats`.
        names: what it is about, where that is no number.
    """

    code: Code
    numbers: dict[str, float]
    names: list[str] = field(default_factory=list)


def findings(run: Run, semantic: Semantic, metrics: Metrics, kv: Seq[KvHypothesis], noise: TokenNoise) -> list[Remark]:
    """Say what else the numbers show.

    Args:
        run: the tokens.
        semantic: what the recorded values are.
        metrics: as the trainer sees them.
        kv: other histories of the KV than the trace tells.
        noise: that onsets are judged with.
    """
    found = []
    if semantic.contradicts_declared:
        found.append(Remark("declared otherwise", {"nats": semantic.margin}))
    if len(semantic.declared) > 1:
        found.append(Remark("modes differ", {"count": len(semantic.declared)}))
    positive = int(np.count_nonzero(run.rollout_logprob[run.valid] > 0))
    if positive:
        found.append(Remark("above zero", {"count": positive}))
    if metrics.num_outside:
        found.append(Remark("outside the kept set", {"count": metrics.num_outside}))
    if noise.floor.excess > 1 and _off_from_the_start(run, noise):
        floor = noise.floor
        found.append(Remark("whole run", {"times": floor.engine_noise / floor.scale, "allowed": floor.allowed}))
    for other in kv:
        if other.total_nats < -MARGIN:
            code: Code = "values say kv recomputed" if other.name == "recomputed" else "values say kv kept"
            better = other.num_rollouts - other.num_recorded_better
            found.append(Remark(code, {"count": better, "nats": -other.total_nats}))
    return found


def too_small(facts: Facts) -> list[Remark]:
    """Say which updates moved tensors that did not move in the engine's dtype."""
    return [
        Remark("update below resolution", {"version": u.version, "moved": u.moved, "count": u.moved - u.arrived})
        for u in facts.updates
        if u.arrived < u.moved
    ]


def limits(run: Run, noise: NoiseFloor, semantic: Semantic) -> list[Remark]:
    """Say what was not tested.

    Args:
        run: the tokens.
        noise: the floor that onsets were judged with.
        semantic: what the recorded values are.
    """
    said = [Remark("detectable", {"nats": noise.detectable, "bulk": noise.detectable_bulk}), Remark("float32 head", {})]
    if semantic.kind == SAME:
        said.append(Remark("same numbers", {}))
    if semantic.kind == UNDECIDED:
        said.append(Remark("not told apart", {"nats": semantic.margin}))
    if run.num_kv_unknown:
        said.append(Remark("kv recomputed", {"count": run.num_kv_unknown}))
    return said


def _off_from_the_start(run: Run, noise: TokenNoise) -> bool:
    """Whether the first quarter of the output tokens is as far off in its bulk as is no longer noise."""
    length = np.bincount(run.rollout, minlength=len(run.rollouts))[run.rollout]
    early = noise.telling & (run.output_index < np.maximum(length / 4, 1))
    return robust_deviation(np.abs(noise.z[early])) > noise.floor.allowed
