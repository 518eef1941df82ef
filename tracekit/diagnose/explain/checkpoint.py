"""The tensors of an engine are not those of the checkpoint that it is scored with, by their fingerprints.

A tensor that differs from the checkpoint and is that of another one is identified, whatever the logprobs say. One that
is no known checkpoint's may be laid out in a way that replay does not know, so that is only named where values diverge.
"""

from __future__ import annotations

from math import nan

import numpy as np

from tracekit.diagnose.data import INFERENCE_PATH, Mask
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_under_lens
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.facts import Version

OTHER: Code = "other checkpoint"
KEPT: Code = "kept tensors"
UNKNOWN: Code = "unknown weights"
CODES: tuple[Code, ...] = (OTHER, KEPT, UNKNOWN)


def detect(evidence: Evidence) -> list[Explanation]:
    """Name each engine's version that sampled tokens with other tensors than it is scored with."""
    run = evidence.run
    ran = np.unique(np.column_stack([run.engine, run.weight_version]), axis=0).tolist()
    return [found for engine, version in ran for found in _of(evidence, (engine, version))]


def _of(evidence: Evidence, pair: Version) -> list[Explanation]:
    facts = evidence.facts
    own, believed = facts.fingerprints.get(pair, {}), facts.scored.get(pair, "")
    wanted = facts.checkpoints.get(believed, {})
    comparable = [name for name, value in own.items() if value is not None and wanted.get(name) is not None]
    differ = {name for name in comparable if own[name] != wanted[name]}
    same = {
        other: {name for name in differ if tensors.get(name) == own[name]}
        for other, tensors in facts.checkpoints.items()
        if other != believed
    }
    best = max(same, key=lambda other: len(same[other]), default="")
    if not differ or (not same.get(best) and not evidence.diverges):
        return []
    where = (evidence.run.engine == pair[0]) & (evidence.run.weight_version == pair[1])
    if not same.get(best):
        return [_explanation(evidence, UNKNOWN, pair, where, differ, len(comparable), [believed])]
    # what no update touched is the same in both, so what tells the two apart is what counts
    telling = {name for name in comparable if facts.checkpoints[best].get(name) not in (None, wanted[name])}
    code = OTHER if same[best] >= telling else KEPT
    return [_explanation(evidence, code, pair, where, same[best], len(telling), [believed, best])]


def _explanation(
    evidence: Evidence, code: Code, pair: Version, where: Mask, tensors: set[str], of: int, checkpoints: list[str]
) -> Explanation:
    names = sorted({tensor.split(" ", 1)[1] for tensor in tensors})
    return Explanation(
        code,
        INFERENCE_PATH,
        margin=nan,
        share=nan,
        **place_under_lens(evidence, where),
        numbers={"engine": float(pair[0]), "version": float(pair[1]), "tensors": float(len(tensors)), "of": float(of)},
        names=[*checkpoints, *names],
    )
