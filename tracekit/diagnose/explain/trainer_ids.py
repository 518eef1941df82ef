"""The trainer's ids are not the engine's, or its mask does not cover what was sampled: proved without numerics."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from tracekit.diagnose.data import SEMANTIC
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.onset import Onset, onset_at
from tracekit.diagnose.view import Masked, Mispaired

CODES: tuple[Code, ...] = (
    "engine double bos",
    "trainer double bos",
    "trainer prompt differs",
    "trainer history differs",
    "trainer completion truncated",
    "trainer completion extended",
    "trainer completion retokenised",
    "trainer completion differs",
    "trainer mask shifted",
    "trainer mask wrong",
    "trainer version differs",
)


def detect(evidence: Evidence) -> list[Explanation]:
    """Name every kind of difference, with the first of its kind."""
    view = evidence.run.view
    if view is None:
        return []
    ids: dict[Code, list[Mispaired]] = defaultdict(list)
    for pair in view.mispaired:
        ids[pair.code].append(pair)
    masks: dict[Code, list[Masked]] = defaultdict(list)
    for mask in view.masked:
        masks[mask.code].append(mask)
    found = [_of_ids(evidence, code, pairs) for code, pairs in ids.items()]
    found += [_of_masks(evidence, code, wrong) for code, wrong in masks.items()]
    return found + _of_versions(evidence)


def _of_ids(evidence: Evidence, code: Code, pairs: list[Mispaired]) -> Explanation:
    first = pairs[0]
    numbers = {
        "count": float(len(pairs)),
        "position": float(first.position),
        "num_tokens": float(sum(pair.num_tokens for pair in pairs)),
    }
    shown = [" ".join(map(str, ids)) or "nothing" for ids in (first.engine_ids, first.trainer_ids)]
    party = "engine" if code.startswith("engine") else "trainer"
    since = _since(evidence, first.rollout, first.position)
    rollouts = [pair.rollout for pair in pairs]
    return _proved(code, since, rollouts, numbers, [party, *shown])


def _of_masks(evidence: Evidence, code: Code, wrong: list[Masked]) -> Explanation:
    numbers = {
        "count": float(len(wrong)),
        "shift": float(wrong[0].shift),
        "num_extra": float(sum(mask.num_extra for mask in wrong)),
        "num_missing": float(sum(mask.num_missing for mask in wrong)),
    }
    since = _since(evidence, wrong[0].rollout, 0)
    return _proved(code, since, [mask.rollout for mask in wrong], numbers, ["trainer"])


def _of_versions(evidence: Evidence) -> list[Explanation]:
    """The trainer's label of the weights is not the engine's, a constant between two countings aside."""
    run, view = evidence.run, evidence.run.view
    assert view is not None
    told = np.isfinite(view.version)
    if not told.any():
        return []
    off = view.version - run.weight_version
    usual = float(np.median(off[told]))
    wrong = told & (off != usual)
    if not wrong.any():
        return []
    first = int(np.flatnonzero(wrong)[0])
    numbers = {
        "count": float(wrong.sum()),
        "trainer_version": float(view.version[first]) - usual,
        "engine_version": float(run.weight_version[first]),
    }
    rollouts = np.unique(run.rollout[wrong]).tolist()
    return [_proved("trainer version differs", _at(evidence, first), rollouts, numbers, ["trainer"])]


def _proved(
    code: Code, since: Onset | None, rollouts: list[int], numbers: dict[str, float], names: list[str]
) -> Explanation:
    return Explanation(
        code,
        SEMANTIC,
        margin=float("nan"),
        share=float("nan"),
        since=since,
        since_rollout=rollouts[0],
        rollouts=rollouts,
        numbers=numbers,
        names=names,
    )


def _since(evidence: Evidence, rollout: int, position: int) -> Onset:
    """The first sampled token at or behind a position of a rollout; its last one where there is none."""
    run = evidence.run
    own = np.flatnonzero(run.rollout == rollout)
    behind = own[run.position[own] >= position]
    return _at(evidence, int(behind[0] if behind.size else own[-1]))


def _at(evidence: Evidence, i: int) -> Onset:
    return onset_at(evidence.run, evidence.run.trainer.logprob(evidence.lens), evidence.judged.sigma, i)
