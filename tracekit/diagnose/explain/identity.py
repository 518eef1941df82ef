"""Engines that give the same weights different version numbers: one of them missed an update, or began later.

By fingerprints alone: a version's number is an engine's own count of updates, and what it stands for is its tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import nan

import numpy as np

from tracekit.diagnose.data import INFERENCE_PATH
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_under_lens
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.facts import Version

CODE: Code = "version numbers differ"

_Tensors = Mapping[str, int | None]


def detect(evidence: Evidence) -> list[Explanation]:
    """Name versions of an engine whose tensors are those of another engine under another number, and not under its own.

    Nothing where the rollouts agree with the weights that were given: those who gave them knew.
    """
    run, known = evidence.run, evidence.facts.fingerprints
    ran = {(int(e), int(v)) for e, v in np.unique(np.column_stack([run.engine, run.weight_version]), axis=0)}
    if not evidence.diverges:
        return []
    odd = {pair: twin for pair in sorted(ran) if (twin := _twin(pair, known)) is not None}
    where = np.zeros(run.token_id.size, dtype=bool)
    for engine, version in odd:
        where |= (run.engine == engine) & (run.weight_version == version)
    if not where.any():
        return []
    return [
        Explanation(
            CODE,
            INFERENCE_PATH,
            margin=nan,
            share=nan,
            **place_under_lens(evidence, where),
            numbers={"engine": float(next(iter(odd))[0])},
            names=[f"{version} is {twin} of engine {of}" for (_, version), (of, twin) in odd.items()],
        )
    ]


def _twin(pair: Version, known: Mapping[Version, _Tensors]) -> Version | None:
    """The later version of another engine that has these weights; under the same number that one has others."""
    engine, version = pair
    for other, number in sorted(known):
        if other != engine and number > version and pair in known and (other, version) in known:
            same = _compare(known[pair], known[other, number])
            if same and _compare(known[pair], known[other, version]) is False:
                return other, number
    return None


def _compare(one: _Tensors, other: _Tensors) -> bool | None:
    """Whether all tensors that both can read are the same; None where there are none."""
    both = [name for name in one.keys() & other.keys() if one[name] is not None and other[name] is not None]
    return all(one[name] == other[name] for name in both) if both else None
