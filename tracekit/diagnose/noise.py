"""The noise floor of one run, measured in that run: what is no larger than this is not a finding.

The rule. A scorer's own numerical noise is what changes when the same tokens are scored in another batch shape (each
rollout alone, its prompt not shared), and in another body precision, both on a sample of whole rollouts. Measured per
token in units of the token's response to logit noise (`residual.py`), it is one number for the whole run, the logit
noise eps, with one tail. Both are fitted to those self-differences: Student's t, scale and degrees of freedom by
maximum likelihood. Two things then are not known in advance:

* the engine has noise of its own, from other kernels and perhaps a head in lower precision. Its size is taken from the
  bulk of the recorded tokens (a median, which a fault in a minority of them does not move), but no less than the
  scorer's own, and at most `ENGINE_ALLOWANCE` times sqrt(2) that: an engine and a scorer of equal quality differ by
  sqrt(2) eps (an engine with a bfloat16 head by about 1.3 times that), and one that is further off in its bulk does
  not get away with calling it noise.
* where to draw the line. A token is beyond noise where its residual exceeds the fitted tail's quantile that lets a
  clean rollout of this run's mean length through with 99 % probability.

So the line is `sigma = scale × unit` and `threshold` times sigma, both from the data of the run. The
self-differences of both passes are pooled, each brought to the same scale. What the line hides is told with it
(`detectable`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, OTHER_PRECISION, OTHER_SHAPE, Mask, Run
from tracekit.diagnose.residual import FLOAT32_RESOLUTION, Residuals, residuals
from tracekit.diagnose.shift import Shifts, find_shifts
from tracekit.diagnose.student import fit_student, two_sided_quantile
from tracekit.scores import PROCESSED

FALSE_ROLLOUTS = 0.01  # share of clean rollouts that may show an onset
ENGINE_ALLOWANCE = 1.5
_MAD = 0.6745  # median of |x| for a standard normal


@dataclass(frozen=True)
class NoiseFloor:
    """What this run's noise is, for one semantic.

    Attributes:
        semantic: "raw" or "processed".
        num_tokens: tokens with a free choice on which another precision was measured.
        num_shape_tokens: the same for another batch shape.
        shape_d_mean: mean |d| between the pass and each rollout alone and unshared, nats, over its tokens.
        shape_d_max: the largest of them, nats.
        shape_noise: logit noise from another batch shape (robust deviation of the self-differences).
        precision_noise: logit noise from another body precision.
        engine_noise: logit noise that the bulk of recorded − replayed shows.
        scale: logit noise used for sigma.
        capped: the engine's noise is above what it is allowed.
        degrees: degrees of freedom of the tail.
        threshold: a token is beyond noise above this many sigma.
        largest_self: the largest self-difference of the run, in the same sigma.
        detectable: nats that a token of median response must be off by to be beyond noise.
    """

    semantic: str
    num_tokens: int
    num_shape_tokens: int
    shape_d_mean: float
    shape_d_max: float
    shape_noise: float
    precision_noise: float
    engine_noise: float
    scale: float
    capped: bool
    degrees: float
    threshold: float
    largest_self: float
    detectable: float


@dataclass(frozen=True)
class TokenNoise:
    """The noise floor applied to every token, [N] each."""

    d: F8  # replayed − recorded, nats, of the compared semantic
    sigma: F8  # nats
    beyond: Mask
    shifts: Shifts  # one entry per rollout
    floor: NoiseFloor


def measure_noise(run: Run, semantic: str) -> TokenNoise:
    """Measure the noise floor under one semantic and apply it to every token of the run."""
    scores = run.trainer
    free = _free(run, semantic)
    gain = np.where(free, scores.gain(semantic), np.nan)
    rough = robust_deviation(np.abs(run.scores[OTHER_PRECISION].logprob(semantic) - scores.logprob(semantic)) / gain)
    own = [
        residuals(run, scores, semantic, other.logprob(semantic), logit_noise=rough)
        for other in (run.scores[OTHER_SHAPE], run.scores[OTHER_PRECISION])
    ]
    shape, precision = (robust_deviation(r.smooth[free]) for r in own)
    eps = max(shape, precision, FLOAT32_RESOLUTION)
    plain = residuals(run, scores, semantic, run.rollout_logprob, logit_noise=eps)
    engine = robust_deviation(plain.smooth[free & run.valid])
    most = ENGINE_ALLOWANCE * np.sqrt(2) * eps
    scale = float(min(max(engine, eps), most))
    recorded = plain.settle(scale)
    degrees, largest = _tail(own, (shape, precision), free)
    length = run.token_id.size / max(len(run.rollouts), 1)
    # sigma is a robust deviation, the one in which a t of scale 1 measures more than 1
    robust_of_t = two_sided_quantile(0.5, degrees) / _MAD
    threshold = two_sided_quantile(FALSE_ROLLOUTS / max(length, 1.0), degrees) / robust_of_t
    sigma = scale * recorded.unit
    with np.errstate(invalid="ignore"):
        beyond = run.valid & (np.abs(recorded.value) > threshold * sigma)
    z = recorded.smooth / scale * robust_of_t
    shifts = find_shifts(z, free & run.valid & np.isfinite(z), run.rollout, len(run.rollouts), degrees)
    by_shape = _finite(np.abs(own[0].value))
    floor = NoiseFloor(
        semantic=semantic,
        num_tokens=int(np.count_nonzero(free & np.isfinite(own[1].value))),
        num_shape_tokens=int(np.count_nonzero(free & np.isfinite(own[0].value))),
        shape_d_mean=float(by_shape.mean()) if by_shape.size else float("nan"),
        shape_d_max=float(by_shape.max()) if by_shape.size else float("nan"),
        shape_noise=shape,
        precision_noise=precision,
        engine_noise=engine,
        scale=scale,
        capped=bool(engine > most),
        degrees=degrees,
        threshold=float(threshold),
        largest_self=largest,
        detectable=float(threshold * np.median(sigma[free])) if free.any() else float("nan"),
    )
    d = scores.logprob(semantic) - run.rollout_logprob
    return TokenNoise(d=d, sigma=sigma, beyond=beyond, shifts=shifts, floor=floor)


def _free(run: Run, semantic: str) -> Mask:
    """Tokens that had an alternative: a forced token's processed logprob is 0 whatever the noise."""
    mask: Mask = run.trainer.gain(semantic) > 0
    return mask & (run.trainer.kept_count != 1) if semantic == PROCESSED else mask


def robust_deviation(sizes: F8) -> float:
    """Return the median-based standard deviation of |residual|, NaN left out; 0 where there is none."""
    values = _finite(sizes)
    return float(np.median(values)) / _MAD if values.size else 0.0


def _finite(values: F8) -> F8:
    return values[np.isfinite(values)]


def _tail(own: list[Residuals], scales: tuple[float, float], free: Mask) -> tuple[float, float]:
    """Degrees of freedom of the pooled self-differences, and the largest of them in their own robust deviations."""
    pooled = [_finite(r.settle(s).smooth[free]) / s for r, s in zip(own, scales, strict=True) if s > 0]
    z = np.concatenate(pooled) if pooled else np.empty(0)
    if not z.size:
        return 30.0, float("nan")
    return fit_student(z, np.ones_like(z)).degrees, float(z.max())
