"""The trainer's old_logprobs leave the scorer's: which other way to compute them gives what it has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.chance import chance_of
from tracekit.diagnose.data import F8, INFERENCE_PATH, SEMANTIC, Layer, Mask, Run
from tracekit.diagnose.density import Density
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.neighbours import shifted
from tracekit.diagnose.noise import TokenNoise, measure_noise
from tracekit.diagnose.onset import earliest, find_onsets
from tracekit.diagnose.party import AGREES, is_copied, rollouts_of_trainer, trainer_as_engine, usable
from tracekit.diagnose.pooled import find_changes
from tracekit.diagnose.profile import predict
from tracekit.diagnose.readings import READINGS
from tracekit.diagnose.semantic import MARGIN, SMALLEST_UNIT, TAILS
from tracekit.diagnose.student import fit_student
from tracekit.diagnose.trial import Tried

CODES: tuple[Code, ...] = ("trainer reading", "trainer shifted", "trainer offset")
NARROW: Code = "trainer bfloat16 head"
CODES_ON_PATH: tuple[Code, ...] = (NARROW, "trainer packed", "trainer padded", AGREES, "trainer unexplained")

PACKED = "trainer.packed"  # passes for the third party, by their names in `Run.scores`
PADDED = "trainer.padded"
CHANCE = 0.01  # share of clean dumps that may be called off
_SHARE = 0.5  # of what there is to explain
_NARROW_SHARE = 0.2
_LEAST = 8  # tokens


@dataclass(frozen=True)
class Guess:
    """One way in which the trainer may have come to its values.

    Attributes:
        code: of the cause.
        layer: that it belongs to.
        values: [N] nats that it predicts; NaN where it says nothing.
        names: what its sentence needs.
        numbers: the same.
        least_share: of what there is to explain, without which it is not named.
    """

    code: Code
    layer: Layer
    values: F8
    names: tuple[str, ...] = ()
    numbers: tuple[tuple[str, float], ...] = ()
    least_share: float = _SHARE


@dataclass(frozen=True)
class Weighed:
    """A guess beside the expected values: nats that it gains, per token too, and its share of what is to explain."""

    guess: Guess
    nats: float
    each: float
    share: float


def leaves(run: Run, expect: str) -> TokenNoise | None:
    """Return the noise of the trainer's values where they leave the scorer's; None where they do not or are copied.

    Args:
        run: with the trainer's view.
        expect: "processed" or "raw", what its values should be.
    """
    view = run.view
    if view is None or not (usable(view, view.old_logprob) & view.paired).any() or is_copied(run, view, expect):
        return None
    own = trainer_as_engine(run)
    noise = measure_noise(own, expect)
    chance = chance_of(own, noise, find_changes(own, noise.z, noise.telling))
    return noise if chance < CHANCE or noise.floor.excess > 1 else None


def detect(evidence: Evidence) -> list[Explanation]:
    """Judge the trainer's values as the engine's are judged, and name what explains them."""
    if any(cause.code == "trainer sentinel" and "old_logprob" in cause.names for cause in evidence.found):
        return []
    noise = leaves(evidence.run, evidence.expect)
    return [] if noise is None else [_explain(evidence, trainer_as_engine(evidence.run), noise)]


def _explain(evidence: Evidence, run: Run, noise: TokenNoise) -> Explanation:
    expected = run.trainer.logprob(evidence.expect)
    weighed = sorted(_weigh(evidence, run, noise), key=lambda one: -one.each)
    enough = [one for one in weighed if one.nats >= MARGIN and one.share >= one.guess.least_share]
    best = enough[0] if enough and enough[0] is weighed[0] else None
    onsets = find_onsets(run, expected, noise)
    first = earliest(onsets)
    own = rollouts_of_trainer(evidence.run)
    size = np.abs(run.rollout_logprob - expected)[run.valid]
    numbers = {"d_abs_mean": float(size.mean()), "count": float(size.size)}
    others = [one for one in weighed if best and one.guess.code != best.guess.code]
    return Explanation(
        code=best.guess.code if best else "trainer unexplained",
        layer=best.guess.layer if best else INFERENCE_PATH,
        margin=best.nats - max([0.0, *(one.nats for one in others)]) if best else float("nan"),
        share=best.share if best else float("nan"),
        since=None if first is None else onsets[first].onset,
        since_rollout=None if first is None else own[first],
        rollouts=[own[i] for i, onset in enumerate(onsets) if onset.onset],
        numbers={**numbers, **dict(best.guess.numbers)} if best else numbers,
        names=["trainer", *(best.guess.names if best else ())],
        alternatives=sorted({one.guess.code for one in others if best and best.nats - one.nats < MARGIN}),
    )


def _weigh(evidence: Evidence, run: Run, noise: TokenNoise) -> Iterator[Weighed]:
    expected = run.trainer.logprob(evidence.expect)
    unit = np.hypot(run.trainer.gain(evidence.expect), SMALLEST_UNIT)
    for guess in _guesses(evidence, run, noise):
        use = run.valid & np.isfinite(guess.values) & np.isfinite(expected) & np.isfinite(unit)
        if (count := int(np.count_nonzero(use))) < _LEAST:
            continue
        before, after = (
            fit_student((run.rollout_logprob - values)[use], unit[use], tails=TAILS).log_likelihood
            for values in (expected, guess.values)
        )
        yield Weighed(guess, after - before, (after - before) / count, _share(run, noise, guess.values, use))


def _guesses(evidence: Evidence, run: Run, noise: TokenNoise) -> Iterator[Guess]:
    expect = evidence.expect
    right = run.trainer.logprob(expect)
    for reading in READINGS:
        if reading.scores in run.scores and reading.name != expect:
            values = run.scores[reading.scores].logprob(reading.lens)
            yield Guess("trainer reading", SEMANTIC, values, (reading.name, expect))
    for by, name in ((1, "late"), (-1, "early")):
        yield Guess("trainer shifted", SEMANTIC, shifted(run, right, by), (name,))
    offset = float(np.nanmedian(run.rollout_logprob - right))
    yield Guess("trainer offset", SEMANTIC, right + offset, (), (("offset", offset),))
    leaks: tuple[tuple[str, Code], ...] = ((PACKED, "trainer packed"), (PADDED, "trainer padded"))
    for name, code in leaks:
        if name in run.scores:
            yield Guess(code, INFERENCE_PATH, run.scores[name].logprob(expect))
    trial = Tried(run).on(expect, Density.of(noise.floor))
    if trial is not None:
        narrow = np.full(right.size, np.nan)
        narrow[trial.index] = predict(trial.profile, trial.settings, low_head=True).logprob
        # what goes into such a head is rounded, too, which a profile does not tell
        yield Guess(NARROW, INFERENCE_PATH, narrow, ("lm_head",), least_share=_NARROW_SHARE)
    own = rollouts_of_trainer(evidence.run)
    yield Guess(AGREES, INFERENCE_PATH, evidence.run.rollout_logprob[np.isin(evidence.run.rollout, own)])


def _share(run: Run, noise: TokenNoise, values: F8, use: Mask) -> float:
    """How much of what the trainer is off by other values explain, 0 to 1; a token counts by the log of its size."""
    sigma = np.where(noise.sigma > 0, noise.sigma, np.nan)[use]
    recorded, expected = run.rollout_logprob[use], run.trainer.logprob(noise.floor.semantic)[use]
    before, after = (float(np.nansum(np.log1p(((recorded - other) / sigma) ** 2))) for other in (expected, values[use]))
    return max(0.0, 1 - after / before) if before > 0 else 0.0
