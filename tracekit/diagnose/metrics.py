"""The mismatch metrics that RL frameworks log, with their names, units and signs.

Everything is built on d = replay − rollout (trainer minus engine), per token, in nats; ratio = e^d, the trainer's
probability over the engine's. Where frameworks use the other sign, the alias says so.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, I8, Mask

EPSILON = 0.2  # PPO's clip range, as in Schulman et al. 2017 and the defaults of verl, TRL and OpenRLHF


@dataclass(frozen=True)
class Metrics:
    """Metrics of one pairing of recorded with replayed logprobs; NaN where there is no token to average over.

    Attributes:
        num_tokens: tokens that entered: recorded value finite and replayed value finite.
        ratio_mean: mean e^d. PipelineRL ratio_new_old, TRL importance_sampling_ratio/mean, verl rollout_is_mean.
        mismatch_kl: k3 of Schulman's note, mean(e^d − d − 1), nats, ≥ 0: estimates KL(rollout ‖ replay) on tokens the
            rollout sampled. prime-rl mismatch_kl, verl k3_kl, NeMo-RL gen_kl_error, PipelineRL kl_new_old.
        k1: −mean d, nats: the unbiased, noisy estimate of the same KL. verl kl, OpenRLHF vllm_kl.
        d_mean: mean d, nats.
        d_abs_mean: mean |d|, nats. TRL sampling_logp_difference/mean, slime train_rollout_logprob_abs_diff.
        d_abs_max: largest |d|, nats. TRL sampling_logp_difference/max.
        clip_rate: share of tokens with ratio outside [1 − epsilon, 1 + epsilon], 0 to 1, before any policy step: a
            perfect backend gives 0. PipelineRL clamp_log_ratio_new_old_indicator.
        epsilon: the clip range used.
        ess: effective sample size of the token weights e^d as a share, (sum w)² / (N sum w²), 0 to 1, unclamped.
        bit_equal: share of tokens whose replayed value, rounded to float32 like the record, has the same value.
        forced: share of tokens that were the only survivor of truncation (logprob 0 on any backend).
        bit_equal_free: bit_equal among the tokens that were not forced.
        num_outside: tokens outside the scorer's own kept set; they enter with the token forced into that set.
        num_not_finite: recorded values that are NaN or infinite; they enter nothing.
    """

    num_tokens: int
    ratio_mean: float
    mismatch_kl: float
    k1: float
    d_mean: float
    d_abs_mean: float
    d_abs_max: float
    clip_rate: float
    epsilon: float
    ess: float
    bit_equal: float
    forced: float
    bit_equal_free: float
    num_outside: int
    num_not_finite: int


def bit_equal(rollout: F8, replay: F8) -> Mask:
    """Return where the two agree exactly as float32, the precision of the record, [N]; 0.0 and −0.0 agree."""
    equal: Mask = rollout.astype(np.float32) == replay.astype(np.float32)
    return equal


def measure(
    rollout: F8, replay: F8, kept_count: I8 | None = None, outside: Mask | None = None, *, epsilon: float = EPSILON
) -> Metrics:
    """Compare recorded with replayed logprobs.

    Args:
        rollout: [N] nats, recorded by the engine; not-finite values are counted and left out.
        replay: [N] nats, the scorer's.
        kept_count: [N] survivors of truncation in the scorer (1 = forced); None where nothing truncates.
        outside: [N] true where the token is outside the scorer's kept set; None for nowhere.
        epsilon: clip range of clip_rate.
    """
    finite = np.isfinite(rollout)
    use = finite & np.isfinite(replay)
    d = replay[use] - rollout[use]
    equal = bit_equal(rollout[use], replay[use])
    is_forced = np.zeros(d.size, dtype=bool) if kept_count is None else kept_count[use] == 1
    with np.errstate(over="ignore"):
        ratio = np.exp(d)
        kl = k3(d)
    nan = float("nan")
    some = d.size > 0
    free = equal[~is_forced]
    return Metrics(
        num_tokens=int(d.size),
        ratio_mean=float(ratio.mean()) if some else nan,
        mismatch_kl=float(kl.mean()) if some else nan,
        k1=float(-d.mean()) if some else nan,
        d_mean=float(d.mean()) if some else nan,
        d_abs_mean=float(np.abs(d).mean()) if some else nan,
        d_abs_max=float(np.abs(d).max()) if some else nan,
        clip_rate=float(((ratio < 1 - epsilon) | (ratio > 1 + epsilon)).mean()) if some else nan,
        epsilon=epsilon,
        ess=ess(d) if some else nan,
        bit_equal=float(equal.mean()) if some else nan,
        forced=float(is_forced.mean()) if some else nan,
        bit_equal_free=float(free.mean()) if free.size else nan,
        num_outside=0 if outside is None else int(np.count_nonzero(outside[use])),
        num_not_finite=int(np.count_nonzero(~finite)),
    )


def k3(d: F8) -> F8:
    """Return e^d − d − 1 of each token, nats: Schulman's third estimator of a KL divergence."""
    return np.expm1(d) - d


def ess(d: F8) -> float:
    """Return the effective sample size of the weights e^d as a share, 0 to 1."""
    weight = np.exp(d - d.max())  # ESS does not depend on the scale, and the shift keeps e^d finite
    return float(weight.sum() ** 2 / (weight.size * (weight**2).sum()))
