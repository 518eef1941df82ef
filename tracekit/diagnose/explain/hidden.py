"""A mask that no request names: tokens whose mass is missing from the sum that the engine divides by.

Ids that were never drawn, and without which the replay gives the recorded values; frameworks bar what lies beyond a
tokenizer within the model's own code, for one. Ranges are looked for under noise wide enough that one which is nearly
right shows, and weighed under the run's own.
"""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import I8, SEMANTIC
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.onset import earliest
from tracekit.diagnose.profile import predict
from tracekit.diagnose.ranges import WIDE, Blurred, few, in_words, mass_of
from tracekit.diagnose.trial import Attempt
from tracekit.scores import PROCESSED, RAW

CODE: Code = "hidden mask"
LEAST_NATS = 15.0  # for the choice of a range of ids and of a part of the run
LEAST_SHARE = 0.3
_TRIED = 16  # ranges of ids that were never drawn, those first that should have been drawn most often
_MOST = 4  # ranges that make up one mask
_LEAST_RANGE = 0.05  # of what the ranges before it explain


def detect(evidence: Evidence) -> list[Explanation]:
    """Bar one range of ids after the other as long as the values fit better without it."""
    if not evidence.asks:
        return []
    results = [_mask(evidence, lens) for lens in (RAW, PROCESSED)]
    found = [explanation for explanation in results if explanation is not None]
    return sorted(found, key=lambda explanation: -explanation.numbers["nats"])[:1]


def _mask(evidence: Evidence, lens: str) -> Explanation | None:
    trial = evidence.trial(lens)
    if trial is None:
        return None
    ranges = _ranges(Blurred(few(trial), WIDE), _drawn(evidence))
    if not ranges:
        return None
    own, barred = Blurred(trial), np.concatenate(ranges)
    start, told = trial.predict(trial.settings), predict(trial.profile, trial.settings, barred=barred)
    before, after = own.weigh(start), own.weigh(told)
    found = trial.attempt(after, before, own.usual(start))
    if not found.enough(LEAST_NATS, LEAST_SHARE):
        return None
    return _explanation(evidence, own, ranges, found, found.part.which & (after > before + 1.0))


def _explanation(
    evidence: Evidence, own: Blurred, ranges: list[I8], found: Attempt, moved: np.typing.NDArray[np.bool_]
) -> Explanation:
    trial, barred, part = own.trial, np.concatenate(ranges), found.part
    start, told = trial.predict(trial.settings), predict(trial.profile, trial.settings, barred=barred)
    gone = -np.expm1(-np.maximum(told.logprob - start.logprob, 0.0))[part.which]
    mass = mass_of(trial)
    return Explanation(
        CODE,
        SEMANTIC,
        margin=part.nats,
        share=found.share,
        **place_of(evidence, trial.index[moved if moved.any() else part.which]),
        numbers={
            "nats": part.nats,
            "num_ids": float(barred.size),
            "missing_mass": float(np.nanmean(gone)),
            "expected": float(sum(mass.get(int(i), 0.0) for i in barred)),
            "num_tokens": float(np.count_nonzero(part.which)),
        },
        names=in_words(ranges),
    )


def _ranges(wide: Blurred, drawn: I8) -> list[I8]:
    """Ranges of ids without which the values fit better, one after the other."""
    trial = wide.trial
    start = trial.predict(trial.settings)
    before = weights = wide.weigh(start)
    mass, ranges = mass_of(trial), list[I8]()
    barred = np.empty(0, np.int64)
    for _ in range(_MOST):
        tried = [(wide.barring(np.union1d(barred, ids)), ids) for ids in _never_drawn(drawn, mass, barred)]
        if not tried:
            break
        _, ids = max(tried, key=lambda pair: trial.attempt(pair[0], weights, before).part.nats)
        ids = _trimmed(wide, barred, ids)
        own = wide.barring(np.union1d(barred, ids))
        gained = trial.attempt(own, weights, before).part.nats
        if gained < max(LEAST_NATS, _LEAST_RANGE * float((weights - before).sum())):
            break
        barred, weights = np.union1d(barred, ids), np.maximum(own, weights) if barred.size else own
        ranges.append(ids)
    return ranges


def _drawn(evidence: Evidence) -> I8:
    """Ids that were drawn since the first onset: a mask may have come under way."""
    first = earliest(evidence.rollouts)
    onset = None if first is None else evidence.rollouts[first].onset
    late = evidence.run.engine_step >= (0 if onset is None else onset.engine_step)
    return np.unique(evidence.run.token_id[late])


def _never_drawn(drawn: I8, mass: dict[int, float], barred: I8) -> list[I8]:
    """Ranges of ids between those that were drawn, by how often theirs should have been."""
    ids = np.array(sorted(mass))
    sums = np.array([mass[int(i)] for i in ids])
    group = np.searchsorted(np.unique(np.concatenate([drawn, barred])), ids)
    usable = ~np.isin(ids, drawn) & ~np.isin(ids, barred)
    totals = np.bincount(group[usable], weights=sums[usable]) if usable.any() else np.empty(0)
    return [ids[usable & (group == g)] for g in np.argsort(-totals)[:_TRIED] if totals[g] > 0]


def _trimmed(wide: Blurred, barred: I8, ids: I8) -> I8:
    """The range without what lies at its ends and does not belong to it, by likelihood."""
    step = max(ids.size // 2, 1)
    best = float(wide.barring(np.union1d(barred, ids)).sum())
    while step:
        changed = False
        for shorter in (ids[step:], ids[:-step]):
            if shorter.size:
                value = float(wide.barring(np.union1d(barred, shorter)).sum())
                if value > best:
                    best, ids, changed = value, shorter, True
                    break
        step = step if changed else step // 2
    return ids
