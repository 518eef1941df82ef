"""A mask that no request names: tokens whose mass is missing from the sum that the engine divides by.

Ids that were never drawn, and without which the replay gives the recorded values; frameworks bar what lies beyond a
tokenizer within the model's own code, for one.
"""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import F8, I8, SEMANTIC
from tracekit.diagnose.density import Density
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.part import best_part
from tracekit.diagnose.profile import predict
from tracekit.diagnose.semantic import NEITHER
from tracekit.diagnose.settings import Settings, neutral
from tracekit.diagnose.trial import Trial, trial_of
from tracekit.scores import PROCESSED, RAW

CODE: Code = "hidden mask"
LEAST_NATS = 15.0  # for the choice of a range of ids and of a part of the run
LEAST_SHARE = 0.3
_TRIED = 16  # ranges of ids that were never drawn, those first that should have been drawn most often
_MOST = 4  # ranges that make up one mask
_LEAST_RANGE = 0.05  # of what the ranges before it explain
_NOISE = 0.02


def detect(evidence: Evidence) -> list[Explanation]:
    """Bar one range of ids after the other as long as the values fit better without it."""
    if evidence.semantic.kind != NEITHER and not evidence.diverges:
        return []
    results = [_mask(evidence, lens) for lens in (RAW, PROCESSED)]
    found = [explanation for explanation in results if explanation is not None]
    return sorted(found, key=lambda explanation: -explanation.numbers["nats"])[:1]


def _mask(evidence: Evidence, lens: str) -> Explanation | None:
    run = evidence.run
    # of tokens that profiles do not list one by one a mask takes more or less than is known
    trial = trial_of(run, Density.of(evidence.noise[lens].floor).wider(_NOISE))
    if trial is None:
        return None
    settings = neutral(trial.index.size) if lens == RAW else trial.settings
    start = predict(trial.profile, settings)
    before = weights = trial.density.at(trial.recorded - start.logprob, start.gain)
    perfect = float((trial.density.usual(start.gain) - before).sum())
    mass, ranges = _mass(trial), []
    barred = np.empty(0, np.int64)
    for _ in range(_MOST):
        tried = [
            (_weigh(trial, settings, np.union1d(barred, ids)), ids) for ids in _never_drawn(run.token_id, mass, barred)
        ]
        if not tried:
            break
        own, ids = max(tried, key=lambda pair: best_part(pair[0] - weights, *_order(evidence, trial)).nats)
        ids = _trimmed(trial, settings, barred, ids)
        own = _weigh(trial, settings, np.union1d(barred, ids))
        gained = best_part(own - weights, *_order(evidence, trial)).nats
        if gained < max(LEAST_NATS, _LEAST_RANGE * float((weights - before).sum())):
            break
        barred, weights = np.union1d(barred, ids), np.maximum(own, weights) if barred.size else own
        ranges.append(ids)
    if not ranges:
        return None
    weights = _weigh(trial, settings, barred)
    part = best_part(weights - before, *_order(evidence, trial))
    share = part.nats / perfect if perfect > 0 else 0.0
    if part.nats < LEAST_NATS or share < LEAST_SHARE:
        return None
    told = predict(trial.profile, settings, barred=barred)
    moved = part.which & (weights > before + 1.0)
    gone = -np.expm1(-np.maximum(told.logprob - start.logprob, 0.0))[part.which]
    return Explanation(
        CODE,
        SEMANTIC,
        margin=part.nats,
        share=min(share, 1.0),
        **place_of(evidence, trial.index[moved if moved.any() else part.which]),
        numbers={
            "nats": part.nats,
            "num_ids": float(barred.size),
            "missing_mass": float(np.nanmean(gone)),
            "expected": float(sum(mass.get(int(i), 0.0) for i in barred)),
            "num_tokens": float(np.count_nonzero(part.which)),
        },
        names=[
            f"{ids[0]}" if ids.size == 1 else f"{ids[0]} to {ids[-1]}"
            for ids in sorted(ranges, key=lambda r: int(r[0]))
        ],
    )


def _order(evidence: Evidence, trial: Trial) -> tuple[I8, I8]:
    return evidence.run.engine_step[trial.index], evidence.run.rollout[trial.index]


def _weigh(trial: Trial, settings: Settings, barred: I8) -> F8:
    told = predict(trial.profile, settings, barred=barred)
    return trial.density.at(trial.recorded - told.logprob, told.gain)


def _mass(trial: Trial) -> dict[int, float]:
    """How often each id should have been drawn, of those that profiles list."""
    told = trial.predict(neutral(trial.index.size))
    p = np.exp(trial.profile.logits - trial.profile.logits[:, :1] + told.first[:, None])
    ids, inverse = np.unique(trial.profile.ids, return_inverse=True)
    sums = np.bincount(inverse.ravel(), weights=np.nan_to_num(p).ravel())
    return {int(i): float(s) for i, s in zip(ids, sums, strict=True) if i >= 0}


def _never_drawn(drawn: I8, mass: dict[int, float], barred: I8) -> list[I8]:
    """Ranges of ids between those that were drawn, by how often theirs should have been."""
    ids = np.array(sorted(mass))
    sums = np.array([mass[int(i)] for i in ids])
    group = np.searchsorted(np.unique(np.concatenate([drawn, barred])), ids)
    usable = ~np.isin(ids, drawn) & ~np.isin(ids, barred)
    totals = np.bincount(group[usable], weights=sums[usable]) if usable.any() else np.empty(0)
    return [ids[usable & (group == g)] for g in np.argsort(-totals)[:_TRIED] if totals[g] > 0]


def _trimmed(trial: Trial, settings: Settings, barred: I8, ids: I8) -> I8:
    """The range without what lies at its ends and does not belong to it, by likelihood."""
    step = max(ids.size // 2, 1)
    best = float(_weigh(trial, settings, np.union1d(barred, ids)).sum())
    while step:
        changed = False
        for shorter in (ids[step:], ids[:-step]):
            if shorter.size:
                value = float(_weigh(trial, settings, np.union1d(barred, shorter)).sum())
                if value > best:
                    best, ids, changed = value, shorter, True
                    break
        step = step if changed else step // 2
    return ids
