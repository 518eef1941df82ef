"""Which number the engine recorded: raw, processed, another reading of the sampling parameters, or none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, Mask, Run
from tracekit.diagnose.noise import TokenNoise, robust_deviation
from tracekit.diagnose.readings import READINGS, Reading, predicted
from tracekit.diagnose.student import fit_student
from tracekit.scores import PROCESSED, RAW

NEITHER = "neither"
SAME = "raw = processed here"
UNDECIDED = "not told apart"
MARGIN = 5.0  # nats: odds of 150 to 1 for the best hypothesis against the next
TAILS = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)  # from 0.5: what explains half the tokens sharply beats what blurs them all
SMALLEST_UNIT = 0.02  # nats of response: keeps a token with next to no choice from outweighing all others


@dataclass(frozen=True)
class Hypothesis:
    """One reading of the recorded values.

    Attributes:
        name: raw, processed, or "processed without …".
        log_likelihood: of the residuals recorded − predicted under Student's t with per-token units, its scale
            and tail fitted per hypothesis, nats over `num_tokens` tokens.
        deviation: of the residuals, as logit noise (robust): compare it with the run's.
        d_abs_mean: mean |predicted − recorded|, nats.
    """

    name: str
    log_likelihood: float
    deviation: float
    d_abs_mean: float


@dataclass(frozen=True)
class Semantic:
    """What the recorded values are.

    Attributes:
        kind: raw, processed, "processed without …", "raw = processed here", "neither" or "not told apart".
        closest: the best hypothesis, also where kind is "neither".
        margin: nats between the closest hypothesis and the next (of raw and processed, where none explains the values).
        runner_up: the next one.
        excess: the bulk of the residuals under the best hypothesis over what this run's noise allows; above 1 the
            hypothesis does not explain the values.
        num_tokens: tokens that all hypotheses were tested on.
        hypotheses: all, best first.
        declared: logprobs_mode of the engines in the trace.
        contradicts_declared: the data say something else than the engines declare.
    """

    kind: str
    closest: str
    margin: float
    runner_up: str
    excess: float
    num_tokens: int
    hypotheses: list[Hypothesis]
    declared: list[str]
    contradicts_declared: bool

    @property
    def lens(self) -> str:
        """The replayed values to compare with from here on, "raw" or "processed"."""
        return RAW if self.closest == RAW else PROCESSED


def tell_semantic(run: Run, noise: Mapping[str, TokenNoise]) -> Semantic:
    """Rank the readings by likelihood and say whether the best one explains the values.

    Args:
        run: the tokens; those that not every hypothesis scored are left out.
        noise: the run's noise under "raw" and under "processed".
    """
    readings = [reading for reading in READINGS if reading.scores in run.scores]
    use = run.valid.copy()
    for reading in readings:
        use &= np.isfinite(run.scores[reading.scores].logprob(reading.lens))
    declared = sorted(run.logprobs_modes)
    if not differ(run, RAW, PROCESSED, noise):
        excess = noise[RAW].floor.excess
        kind = SAME if excess <= 1 else NEITHER
        return Semantic(kind, PROCESSED, float("nan"), "", excess, int(use.sum()), [], declared, False)
    ranked = [_weigh(reading, run, use) for reading in readings]
    ranked.sort(key=lambda h: -h.log_likelihood)
    best, second = ranked[0], ranked[1]
    if best.name not in noise and _excess(best, noise) > 1:
        # what does not explain the values is not a ground for naming a parameter: only raw or processed is left to say
        best, second = (h for h in ranked if h.name in noise)
    margin = best.log_likelihood - second.log_likelihood
    excess = _excess(best, noise)
    kind = best.name if excess <= 1 else NEITHER
    if margin < MARGIN:
        kind = UNDECIDED
    expected = {mode.removesuffix("_logprobs") for mode in declared}
    contradicts = margin >= MARGIN and len(expected) == 1 and best.name not in expected
    return Semantic(kind, best.name, margin, second.name, excess, int(use.sum()), ranked, declared, contradicts)


def differ(run: Run, one: str, other: str, noise: Mapping[str, TokenNoise]) -> bool:
    """Whether two readings give different numbers on any token of this run, noise aside."""
    a, b = predicted(run, one), predicted(run, other)
    both = np.isfinite(a) & np.isfinite(b)
    line = np.fmax(noise[RAW].sigma, noise[PROCESSED].sigma)
    return bool(np.any(np.abs(a - b)[both] > line[both]))


def advantage(semantic: Semantic, expect: str) -> float:
    """Return by how many nats the closest reading beats the expected one; 0 where they are the same."""
    if not semantic.hypotheses:
        return 0.0
    by_name = {h.name: h.log_likelihood for h in semantic.hypotheses}
    return by_name[semantic.closest] - by_name[expect]


def _weigh(reading: Reading, run: Run, use: Mask) -> Hypothesis:
    scores = run.scores[reading.scores]
    gain = scores.gain(reading.lens)[use]
    residual: F8 = (run.rollout_logprob - scores.logprob(reading.lens))[use]
    fit = fit_student(residual, np.hypot(gain, SMALLEST_UNIT), tails=TAILS)
    mean = float(np.abs(residual).mean()) if residual.size else float("nan")
    deviation = robust_deviation(np.abs(residual) / np.where(gain > 0, gain, np.nan))
    return Hypothesis(reading.name, fit.log_likelihood, deviation, mean)


def _excess(best: Hypothesis, noise: Mapping[str, TokenNoise]) -> float:
    if best.name in noise:
        return noise[best.name].floor.excess
    floor = noise[PROCESSED].floor
    return best.deviation / (floor.scale * floor.allowed)
