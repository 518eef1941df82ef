"""The recorded values are the scorer's, but of another token, of another row, in another unit, or off by a constant.

Each is one transformation of what the trainer's own pass gives, weighed by likelihood on all tokens of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log

import numpy as np

from tracekit.diagnose.data import F8, I8, SEMANTIC, Run
from tracekit.diagnose.density import Density
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.part import best_part
from tracekit.diagnose.semantic import NEITHER
from tracekit.diagnose.sentinels import sentinels
from tracekit.scores import PROCESSED, RAW

SHIFTED: Code = "shifted by one"
OTHER_ROW: Code = "values of another row"
OTHER_UNIT: Code = "another unit"
OFFSET: Code = "constant offset"
CODES = (SHIFTED, OTHER_ROW, OTHER_UNIT, OFFSET)

LEAST_NATS = 12.0  # for the choice of a transformation and of a part of the run
LEAST_SHARE = 0.4  # of what a perfect replay would gain


@dataclass(frozen=True)
class _Told:
    """What a transformation predicts, [N] each."""

    code: Code
    value: F8
    gain: F8
    names: list[str]
    numbers: dict[str, float]


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the transformation that explains the values best, where it explains enough of them."""
    if evidence.semantic.kind != NEITHER and not evidence.diverges:
        return []
    run = evidence.run
    use = np.flatnonzero(run.valid & ~sentinels(run))
    best: tuple[float, Explanation] | None = None
    for lens in (RAW, PROCESSED):
        density, value, gain = Density.of(evidence.noise[lens].floor), run.trainer.logprob(lens), run.trainer.gain(lens)
        expected = evidence.noise[evidence.lens]
        as_read = run.trainer.logprob(evidence.lens), run.trainer.gain(evidence.lens)
        weights = Density.of(expected.floor).at((run.rollout_logprob - as_read[0])[use], as_read[1][use])
        perfect = float((density.usual(gain[use]) - weights).sum())
        for told in _transformations(run, value, gain):
            own = density.at((run.rollout_logprob - told.value)[use], told.gain[use])
            part = best_part(own - weights, run.engine_step[use], run.rollout[use])
            share = part.nats / perfect if perfect > 0 else 0.0
            if part.nats < LEAST_NATS or share < LEAST_SHARE or (best and part.nats <= best[0]):
                continue
            inside = use[part.which]
            moved = inside[np.abs(told.value - as_read[0])[inside] > expected.sigma[inside]]
            numbers = {**told.numbers, "nats": part.nats, "num_tokens": float(inside.size)}
            margin = part.nats - (best[0] if best else 0.0)
            best = (
                part.nats,
                Explanation(
                    told.code,
                    SEMANTIC,
                    margin=margin,
                    share=min(share, 1.0),
                    **place_of(evidence, moved if moved.size else inside),
                    numbers=numbers,
                    names=[lens, *told.names],
                ),
            )
    return [] if best is None else [best[1]]


def _transformations(run: Run, value: F8, gain: F8) -> Iterator[_Told]:
    for by in (1, -1):
        at = _neighbor(run, by)
        yield _Told(SHIFTED, _of(value, at), _of(gain, at), ["next" if by > 0 else "previous"], {"by": float(by)})
    for by in (1, -1):
        at = _other_row(run, by)
        yield _Told(OTHER_ROW, _of(value, at), _of(gain, at), ["next" if by > 0 else "previous"], {"by": float(by)})
    for name, factor in (("bits", 1 / log(2)), ("decimal digits", 1 / log(10)), ("no sign", -1.0)):
        yield _Told(OTHER_UNIT, value * factor, gain * abs(factor), [name], {"factor": factor})
    yield _Told(OTHER_UNIT, np.exp(value), gain * np.exp(value), ["probabilities"], {})
    yield _offset(run, value, gain)


def _of(values: F8, at: I8) -> F8:
    """Values of other tokens; NaN where there is none."""
    taken: F8 = np.where(at >= 0, values[at], np.nan)
    return taken


def _neighbor(run: Run, by: int) -> I8:
    """[N] index of the token before or after in the same rollout, -1 for none."""
    at = np.arange(run.token_id.size) + by
    inside = (at >= 0) & (at < at.size)
    same = inside & (run.rollout[np.clip(at, 0, at.size - 1)] == run.rollout)
    return np.where(same, at, -1)


def _other_row(run: Run, by: int) -> I8:
    """[N] index of the token that the request before or after in the batch got in the same step, -1 for none."""
    engine = np.array([r.engine for r in run.rollouts])[run.rollout]
    order = np.lexsort((run.rollout, run.engine_step, engine))
    at, place = np.full(order.size, -1, dtype=np.int64), np.arange(order.size)
    _, group = np.unique(np.stack([engine, run.engine_step])[:, order], axis=1, return_inverse=True)
    starts = np.searchsorted(group, group, side="left")
    ends = np.searchsorted(group, group, side="right")
    at[order] = order[starts + (place - starts + by) % (ends - starts)]
    return np.where(at == np.arange(order.size), -1, at)


def _offset(run: Run, value: F8, gain: F8) -> _Told:
    """The same for every token: what is missing from, or too much in, the sum that one side divides by."""
    residual = (run.rollout_logprob - value)[run.valid & np.isfinite(value)]
    size = float(np.median(residual)) if residual.size else 0.0
    deviation = float(np.median(np.abs(residual - size))) / 0.6745 if residual.size else 0.0
    half = 1.96 * 1.2533 * deviation / np.sqrt(max(residual.size, 1))
    numbers = {"offset": -size, "low": -size - half, "high": -size + half, "missing_mass": -float(np.expm1(-abs(size)))}
    return _Told(OFFSET, value + size, gain, [], numbers)
