"""A bias that no request names, on a range of ids: their logits are higher, or lower, than the model's.

Tokens drawn from the range have higher values than the replay's and all others lower ones, where the bias is positive:
so the range shows in the signs, over the ids in their order. Its ends and the size are then fitted.
"""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import F8, I8, SEMANTIC
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.profile import Bias, predict
from tracekit.diagnose.ranges import WIDE, Blurred, few, mass_of
from tracekit.scores import PROCESSED, RAW

CODE: Code = "hidden bias"
LEAST_NATS = 15.0
LEAST_SHARE = 0.3
_SIZES = np.array([-4.0, -2.0, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0, 4.0])
_ENDS = 12  # ids between two that were drawn, at which an end is tried


def detect(evidence: Evidence) -> list[Explanation]:
    """Fit one range and one bias, where there is something to explain."""
    if not evidence.asks:
        return []
    results = [_biased(evidence, lens) for lens in (RAW, PROCESSED)]
    found = [explanation for explanation in results if explanation is not None]
    return sorted(found, key=lambda explanation: -explanation.numbers["nats"])[:1]


def _biased(evidence: Evidence, lens: str) -> Explanation | None:
    trial = evidence.trial(lens)
    if trial is None:
        return None
    ids = evidence.run.token_id[trial.index]
    searched = few(trial)
    first, last, by = _fit(
        Blurred(searched, WIDE), evidence.run.token_id[searched.index], np.array(sorted(mass_of(trial)))
    )
    own = Blurred(trial)
    start = trial.predict(trial.settings)
    told = predict(trial.profile, trial.settings, bias=_bias(ids, first, last, by))
    before, after = own.weigh(start), own.weigh(told)
    found = trial.attempt(after, before, own.usual(start))
    if not found.enough(LEAST_NATS, LEAST_SHARE):
        return None
    moved = found.part.which & (after > before + 1.0)
    inside = found.part.which & (ids >= first) & (ids <= last)
    return Explanation(
        CODE,
        SEMANTIC,
        margin=found.part.nats,
        share=found.share,
        **place_of(evidence, trial.index[moved if moved.any() else found.part.which]),
        numbers={
            "nats": found.part.nats,
            "by": by,
            "drawn": float(np.count_nonzero(inside)),
            "num_tokens": float(np.count_nonzero(found.part.which)),
        },
        names=[f"{first} to {last}"],
    )


def _bias(ids: I8, first: int, last: int, by: float) -> Bias:
    return Bias(first, last, by, (ids >= first) & (ids <= last))


def _fit(wide: Blurred, ids: I8, listed: I8) -> tuple[int, int, float]:
    """First and last id of the range, and the bias, by likelihood."""
    trial = wide.trial
    start = trial.predict(trial.settings)
    off = trial.recorded - start.logprob
    sign = np.clip(np.nan_to_num(off / (trial.density.logit_noise * np.hypot(start.gain, 0.02))), -3.0, 3.0)

    def weight(first: int, last: int, by: float) -> float:
        return float(wide.lifting(_bias(ids, first, last, by)).sum())

    best = max(((*_run(ids, np.sign(by) * sign), float(by)) for by in _SIZES), key=lambda told: weight(*told))
    for step in (0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
        first, last, by = best
        ends = [(a, last, by) for a in _near(listed, ids, first)] + [(first, b, by) for b in _near(listed, ids, last)]
        sizes = [(first, last, by + change) for change in (-step, step)]
        best = max([best, *sizes, *(ends if step in (0.2, 0.05) else ())], key=lambda told: weight(*told))
    return best


def _run(ids: I8, gained: F8) -> tuple[int, int]:
    """The ids between which the sum over tokens is largest."""
    values, inverse = np.unique(ids, return_inverse=True)
    sums = np.concatenate([[0.0], np.cumsum(np.bincount(inverse, weights=gained))])
    lowest = np.minimum.accumulate(sums[:-1])
    last = int(np.argmax(sums[1:] - lowest))
    return int(values[int(np.argmin(sums[: last + 1]))]), int(values[last])


def _near(listed: I8, drawn: I8, end: int) -> list[int]:
    """Ids at which the range may end as well: those from the drawn one before to the drawn one after."""
    before, after = drawn[drawn < end], drawn[drawn > end]
    low, high = (int(before.max()) if before.size else 0), (int(after.min()) if after.size else int(listed.max()))
    between = listed[(listed >= low) & (listed <= high)]
    return [int(i) for i in between[np.linspace(0, between.size - 1, min(_ENDS, between.size)).astype(np.int64)]]
