"""The noise floor of one run: what is no larger than this is not a finding.

Nothing here is taken from the residuals that are judged: a fault that is there from the first token on must not raise
its own line. What a clean engine's logits differ by from the scorer's, the logit noise, comes from controls:

* `eps`, what the arithmetic of one body does: the same tokens scored by a body of the other precision and in another
  batch shape, on a sample of whole rollouts, each difference of log odds over what noise of deviation 1 does to it
  (`residual.py`). It is measured on the raw logprobs, whatever is judged: logits do not know the temperature. It counts
  once for each side whose body has the coarser dtype. Where too few tokens have a choice to tell, the resolution of the
  dtype at the size of the logits stands in.
* `head`, what storing a logit in the engine's head dtype does: 1/sqrt(12) of the spacing of bfloat16 or float16 at the
  size of the largest logits; of float32, whose sums over thousands of products and words are no better than that,
  `FLOAT32_SPACINGS` spacings.

A clean token's noise is then sigma = sqrt(sides × eps² + head²) × its response, which holds 1/temperature, beside what
float32 resolves next to 1. Over that, residuals have the tail of a Student's t of `DEGREES` degrees of freedom, which
is fixed: fitted on the few hundred tokens of a sample it jumps between 3 and 30. Real clean runs (vLLM 0.18.1 on a CPU,
SmolLM2, T from 0.03 to 1, top-p, top-k with min-p) stand at 0.9 to 1.2 sigma in their bulk in bfloat16 and at 0.1 to
0.95 in float32, and fit a t of 5 with no token above 4.1 sigma in 2,655. So a bulk above `ALLOWANCE`, and what chance
adds to it in a sample of this size, is a finding of its own, of the whole run.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, OTHER_PRECISION, OTHER_SHAPE, Mask, Run
from tracekit.diagnose.local import local_noise
from tracekit.diagnose.residual import MEDIAN, RESOLUTION, free_tokens, residuals, response, sum_noise
from tracekit.diagnose.shift import Shifts, find_shifts
from tracekit.diagnose.student import two_sided_quantile
from tracekit.scores import PROCESSED, RAW

FALSE_ROLLOUTS = 0.01  # share of clean rollouts that may show a token beyond noise
ALLOWANCE = 1.25
DEGREES = 6.0
# sigma is a robust deviation, the one in which a t of scale 1 measures more than 1
ROBUST_OF_T = two_sided_quantile(0.5, DEGREES) / MEDIAN
FLOAT32_SPACINGS = 8.0
SPACING = {"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}  # of a dtype's numbers next to 1
_BODY = 0.35  # eps over the spacing of the logits, where no token tells: of SmolLM2 and Gemma 3 in bfloat16
_ASSUMED = 10  # tokens that this assumption counts for
_LOGITS = 24.0  # size of the largest logits where no profile tells
_SPREAD = 3.0  # of a bulk over the root of its tokens: 1.2 is the deviation of a median of |x| over it, 2.5 of them


@dataclass(frozen=True)
class NoiseFloor:
    """What this run's noise is, for one semantic.

    Attributes:
        semantic: "raw" or "processed".
        num_tokens: tokens with a choice on which another precision was measured.
        num_shape_tokens: the same for another batch shape.
        shape_d_mean: mean |d| between the pass and each rollout alone and unshared, nats, over its tokens.
        shape_d_max: the largest of them, nats.
        shape_noise: logit noise from another batch shape (robust deviation).
        precision_noise: logit noise from another body precision, or another order of float32 sums.
        head_noise: logit noise from the dtype of the engine's logits.
        scale: logit noise that a clean engine's values are expected to show, from the controls alone.
        engine_noise: logit noise that the bulk of recorded − replayed does show.
        allowed: the bulk over `scale` that a clean run stays under.
        degrees: degrees of freedom of the tail.
        threshold: a token is beyond noise above this many sigma.
        largest_self: the largest difference between controls, in the same sigma.
        detectable: nats that a token of median response must be off by to be beyond noise.
        detectable_bulk: nats by which a token of median response would be off in a run whose bulk is at the limit.
    """

    semantic: str
    num_tokens: int
    num_shape_tokens: int
    shape_d_mean: float
    shape_d_max: float
    shape_noise: float
    precision_noise: float
    head_noise: float
    scale: float
    engine_noise: float
    allowed: float
    degrees: float
    threshold: float
    largest_self: float
    detectable: float
    detectable_bulk: float

    @property
    def excess(self) -> float:
        """The bulk over the most that counts as noise, [0, inf); above 1 the whole run is off."""
        return self.engine_noise / (self.scale * self.allowed)


@dataclass(frozen=True)
class TokenNoise:
    """The noise floor applied to every token, [N] each."""

    d: F8  # replayed − recorded, nats, of the compared semantic
    z: F8  # how far the record is from its replay, in deviations of clean noise; NaN where one of the two is missing
    sigma: F8  # nats: |d| / |z|, so that d / sigma is z but for its sign
    resolved: Mask  # tokens with a choice, that float32 resolves, and whose kept set noise does not blur
    blurred: Mask  # tokens whose kept set is no wider than noise: its edge decides, and the unit of z does not hold
    telling: Mask  # those of them that have a finite record
    beyond: Mask
    shifts: Shifts  # one entry per rollout
    floor: NoiseFloor


@dataclass(frozen=True)
class _Controls:
    """Logit noise by its source, and how many tokens told it."""

    shape: float
    precision: float
    head: float
    scale: float
    num_shape: int
    num_precision: int
    local: F8  # [N] 1, or by how much more at a token


def measure_noises(run: Run) -> dict[str, TokenNoise]:
    """Measure the noise floor under "raw" and under "processed", and apply it to every token of the run."""
    controls = _controls(run)
    return {semantic: _measured(run, semantic, controls) for semantic in (RAW, PROCESSED)}


def measure_noise(run: Run, semantic: str) -> TokenNoise:
    """Measure the noise floor under one semantic alone."""
    return _measured(run, semantic, _controls(run))


def _measured(run: Run, semantic: str, controls: _Controls) -> TokenNoise:
    scores, scale = run.trainer, controls.scale
    d = scores.logprob(semantic) - run.rollout_logprob
    found = residuals(run, scores, semantic, run.rollout_logprob, scale)
    z = np.where(run.valid, found.z, np.nan) / controls.local
    sigma = _sigma(run, semantic, d, z, scale * controls.local)
    # where noise is as wide as the kept set, its edge decides, and tokens are no longer alike in their units
    cut = (run.kept_mass < 1) | (scores.kept_count < scores.kept_count.max(initial=0))
    slope = response(scores, semantic)
    slope = np.where(slope > 0, slope, np.sqrt(2) / run.temperature)  # of a token without a choice: that of one rival
    blurred = (semantic == PROCESSED) & cut & (slope * scale > 1)
    resolved = _resolved(run, semantic) & ~blurred
    telling = resolved & np.isfinite(z)
    length = run.token_id.size / max(len(run.rollouts), 1)
    threshold = two_sided_quantile(FALSE_ROLLOUTS / max(length, 1.0), DEGREES) / ROBUST_OF_T
    with np.errstate(invalid="ignore"):
        beyond = np.abs(z) > threshold
    bulk, num = robust_deviation(np.abs(z[telling])), int(np.count_nonzero(telling))
    allowed = ALLOWANCE * (1 + _SPREAD / np.sqrt(max(num, 1)))
    median = float(np.median(sigma[telling])) if num else float("nan")
    by_shape = _finite(np.abs(run.scores[OTHER_SHAPE].logprob(semantic) - scores.logprob(semantic)))
    own = [residuals(run, scores, semantic, run.scores[name].logprob(semantic), scale).z for name in _CONTROLS]
    largest = _finite(np.abs(np.concatenate(own)))
    floor = NoiseFloor(
        semantic=semantic,
        num_tokens=controls.num_precision,
        num_shape_tokens=controls.num_shape,
        shape_d_mean=float(by_shape.mean()) if by_shape.size else float("nan"),
        shape_d_max=float(by_shape.max()) if by_shape.size else float("nan"),
        shape_noise=controls.shape,
        precision_noise=controls.precision,
        head_noise=controls.head,
        scale=scale,
        engine_noise=bulk * scale,
        allowed=float(allowed),
        degrees=DEGREES,
        threshold=float(threshold),
        largest_self=float(largest.max()) if largest.size else float("nan"),
        detectable=threshold * median,
        detectable_bulk=float(allowed) * median,
    )
    shifts = find_shifts(z * ROBUST_OF_T, telling, run.rollout, len(run.rollouts), DEGREES)
    return TokenNoise(
        d=d,
        z=z,
        sigma=sigma,
        resolved=resolved,
        blurred=blurred,
        telling=telling,
        beyond=beyond,
        shifts=shifts,
        floor=floor,
    )


_CONTROLS = (OTHER_SHAPE, OTHER_PRECISION)


def _controls(run: Run) -> _Controls:
    telling = _resolved(run, RAW) & run.valid
    found = []
    for name in _CONTROLS:
        z = residuals(run, run.trainer, RAW, run.scores[name].raw_logprob, 1.0).smooth[telling]
        found.append((robust_deviation(np.abs(z)), _finite(z).size))
    (shape, num_shape), (precision, num_precision) = found
    dtype = run.dtype or "bfloat16"
    engine_dtype = run.engine_dtype or dtype
    head_dtype = run.head_dtype or engine_dtype
    coarser = max(dtype, engine_dtype, key=lambda name: SPACING.get(name, 0.0))
    size = _size_of_logits(run)
    assumed = _BODY * _spacing(coarser, size)
    trust = num_precision / (num_precision + _ASSUMED)
    eps = max(shape, precision, assumed / 64) ** trust * assumed ** (1 - trust)
    sides = 1 + (dtype == engine_dtype)
    head = FLOAT32_SPACINGS * _spacing("float32", size)
    if head_dtype != "float32":
        head = float(np.hypot(head, _spacing(head_dtype, size) / np.sqrt(12)))
    scale = float(np.hypot(np.sqrt(sides) * eps, head))
    local = local_noise(run, telling, precision, scale)
    return _Controls(shape, precision, head, scale, num_shape, num_precision, local)


def _size_of_logits(run: Run) -> float:
    largest = np.empty(0) if run.profile is None else _finite(np.abs(run.profile.logits[:, 0]))
    return float(np.median(largest)) if largest.size else _LOGITS


def _spacing(dtype: str, size: float) -> float:
    """Between a dtype's numbers at a size; a dtype that is not known is taken for bfloat16."""
    return SPACING.get(dtype, SPACING["bfloat16"]) * float(2.0 ** np.floor(np.log2(max(size, 1.0))))


def _resolved(run: Run, semantic: str) -> Mask:
    """Tokens with a choice whose log odds float32 resolves to a percent."""
    rest = -np.expm1(np.minimum(run.trainer.logprob(semantic), 0.0))
    resolved: Mask = free_tokens(run.trainer, semantic) & (rest > 100 * RESOLUTION)
    return resolved


def _sigma(run: Run, semantic: str, d: F8, z: F8, scale: F8) -> F8:
    """[N] nats; of a token that is bit-equal, what noise does to it to first order."""
    first_order = np.hypot(run.trainer.gain(semantic) * scale, sum_noise(run))
    with np.errstate(invalid="ignore", divide="ignore"):
        secant = np.abs(d) / np.abs(z)
    return np.where(np.isfinite(secant) & (secant > 0), secant, first_order)


def robust_deviation(sizes: F8) -> float:
    """Return the median-based standard deviation of |residual|, NaN left out; 0 where there is none."""
    values = _finite(sizes)
    return float(np.median(values)) / MEDIAN if values.size else 0.0


def _finite(values: F8) -> F8:
    return values[np.isfinite(values)]
