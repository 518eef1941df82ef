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
from tracekit.diagnose.neighbours import other_row, rows_beside, shifted
from tracekit.diagnose.residual import sum_noise
from tracekit.diagnose.trial import Attempt, attempt
from tracekit.scores import PROCESSED, RAW

SHIFTED: Code = "shifted by one"
OTHER_ROW: Code = "values of another row"
OTHER_UNIT: Code = "another unit"
OFFSET: Code = "constant offset"
CODES = (SHIFTED, OTHER_ROW, OTHER_UNIT, OFFSET)

NEIGHBOURS = {1: "next", -1: "previous", 2: "next but one", -2: "previous but one"}
LEAST_NATS = 12.0  # for the choice of a transformation and of a part of the run
LEAST_SHARE = 0.4  # of what a perfect replay would gain
LEAST_OFFSET = 8.0  # times what a float32 sum over the vocabulary loses: less is no mask and no padding


@dataclass(frozen=True)
class _Told:
    """What a transformation predicts, [N] each."""

    code: Code
    value: F8
    gain: F8
    names: list[str]
    numbers: dict[str, float]


@dataclass(frozen=True)
class _Weighed:
    """A transformation of the values under one lens, and what it gains."""

    told: _Told
    lens: str
    attempt: Attempt

    @property
    def nats(self) -> float:
        return self.attempt.part.nats

    def rivals(self, other: _Weighed) -> bool:
        """Whether the other says something else: the same under another lens does not."""
        return (self.told.code, self.told.names) != (other.told.code, other.told.names)


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the transformation that explains the values best, where it explains enough of them."""
    if not evidence.asks:
        return []
    use = np.flatnonzero(evidence.run.valid & ~evidence.tried.sentinels)
    weighed = [told for lens in (RAW, PROCESSED) for told in _weigh(evidence, lens, use)]
    best = max(weighed, key=lambda one: one.nats, default=None)
    if best is None or not best.attempt.enough(LEAST_NATS, LEAST_SHARE):
        return []
    others = [one.nats for one in weighed if best.rivals(one)]
    as_read, sigma = evidence.run.trainer.logprob(evidence.lens), evidence.judged.sigma
    inside = use[best.attempt.part.which]
    moved = inside[np.abs(best.told.value - as_read)[inside] > sigma[inside]]
    return [
        Explanation(
            best.told.code,
            SEMANTIC,
            margin=best.nats - max(0.0, *others),
            share=best.attempt.share,
            **place_of(evidence, moved if moved.size else inside),
            numbers={**best.told.numbers, "nats": best.nats, "num_tokens": float(inside.size)},
            names=[best.lens, *best.told.names],
        )
    ]


def _weigh(evidence: Evidence, lens: str, use: I8) -> Iterator[_Weighed]:
    run, as_read = evidence.run, evidence.run.trainer
    density = Density.of(evidence.noise[lens].floor)
    before = Density.of(evidence.judged.floor).at(
        (run.rollout_logprob - as_read.logprob(evidence.lens))[use], as_read.gain(evidence.lens)[use]
    )
    usual = density.usual(as_read.gain(lens)[use])
    for told in _transformations(run, as_read.logprob(lens), as_read.gain(lens)):
        after = density.at((run.rollout_logprob - told.value)[use], told.gain[use])
        yield _Weighed(told, lens, attempt(after, before, usual, run.engine_step[use], run.rollout[use]))


def _transformations(run: Run, value: F8, gain: F8) -> Iterator[_Told]:
    for by, name in NEIGHBOURS.items():
        yield _Told(SHIFTED, shifted(run, value, -by), shifted(run, gain, -by), [name], {"by": float(by)})
    for by, name in NEIGHBOURS.items():
        at = rows_beside(run, by)
        yield _Told(OTHER_ROW, other_row(value, at), other_row(gain, at), [name], {"by": float(by)})
    for name, factor in (("bits", 1 / log(2)), ("decimal digits", 1 / log(10)), ("no sign", -1.0)):
        yield _Told(OTHER_UNIT, value * factor, gain * abs(factor), [name], {"factor": factor})
    yield _Told(OTHER_UNIT, np.exp(value), gain * np.exp(value), ["probabilities"], {})
    offset = _offset(run, value, gain)
    if abs(offset.numbers["offset"]) >= LEAST_OFFSET * sum_noise(run):
        yield offset


def _offset(run: Run, value: F8, gain: F8) -> _Told:
    """The same for every token: what is missing from, or too much in, the sum that one side divides by."""
    residual = (run.rollout_logprob - value)[run.valid & np.isfinite(value)]
    size = float(np.median(residual)) if residual.size else 0.0
    deviation = float(np.median(np.abs(residual - size))) / 0.6745 if residual.size else 0.0
    half = 1.96 * 1.2533 * deviation / np.sqrt(max(residual.size, 1))
    numbers = {"offset": -size, "low": -size - half, "high": -size + half, "missing_mass": -float(np.expm1(-abs(size)))}
    return _Told(OFFSET, value + size, gain, [], numbers)
