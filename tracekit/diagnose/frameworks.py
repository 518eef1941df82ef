"""The mismatch metrics of RL frameworks, each under its own name and by its own formula: one row each.

d = old − rollout of a token that the loss counts, in nats: `old` is the trainer's recomputation, `rollout` the engine's
value as the trainer holds it. r = e^d. "mean" is over tokens, "sequence mean" first over the tokens of each sequence.
Where a metric compares the policy that is updated, `current` stands for `old` if the dump has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracekit.diagnose.metrics import k3
from tracekit.diagnose.view import F8, I8

_SAFETY = 20.0  # verl's SAFETY_BOUND: a log-ratio is clamped to ± this before exp
_VERL_CAP = 2.0  # verl's default rollout_is_threshold
_TRL_CAP = 3.0  # TRL's default vllm_importance_sampling_clip_max
_DPPO = 0.2  # prime-rl's default dppo_mask_low and dppo_mask_high


@dataclass(frozen=True)
class Pairs:
    """What metrics are computed of: M tokens that the loss counts, of S sequences.

    Attributes:
        rollout: [M] nats.
        old: [M] nats.
        current: [M] nats; `old` where the dump has none.
        advantage: [M] NaN where the dump has none.
        sequence: [M] 0 to S − 1, every one with a token.
        clip: low and high part of the clip range around 1.
    """

    rollout: F8
    old: F8
    current: F8
    advantage: F8
    sequence: I8
    clip: tuple[float, float]

    @property
    def d(self) -> F8:
        """[M] old − rollout."""
        return self.old - self.rollout

    def sums(self, values: F8) -> F8:
        """[S] sums over the tokens of each sequence."""
        sums: F8 = np.bincount(self.sequence, weights=values).astype(np.float64)
        return sums

    def means(self, values: F8) -> F8:
        """[S] means over the tokens of each sequence."""
        return self.sums(values) / np.bincount(self.sequence)


@dataclass(frozen=True)
class Metric:
    """One metric of one framework.

    Attributes:
        name: the framework's.
        framework: whose.
        formula: in the words of this module.
        unit: of the value.
        source: where the framework computes it.
        value: computes it.
    """

    name: str
    framework: str
    formula: str
    unit: str
    source: str
    value: Callable[[Pairs], float | np.floating[Any]]


@dataclass(frozen=True)
class Measured:
    """A metric's value in a run.

    Attributes:
        name: the framework's.
        framework: whose.
        value: NaN where the dump lacks what it takes.
    """

    name: str
    framework: str
    value: float


def measure_all(pairs: Pairs) -> list[Measured]:
    """Compute every metric; none without tokens."""
    if not pairs.old.size:
        return []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        return [Measured(row.name, row.framework, float(row.value(pairs))) for row in METRICS]


def _std(values: F8) -> float:
    return float(np.std(values, ddof=1)) if values.size > 1 else float("nan")


def _js(p: Pairs) -> float:
    mixture = np.log(0.5 * np.exp(p.old) + 0.5 * np.exp(p.rollout))
    one, other = p.old - mixture, p.rollout - mixture
    return float((0.5 * k3(one) + 0.5 * k3(other)).mean())


def _safe(d: F8) -> F8:
    return np.exp(np.clip(d, -_SAFETY, _SAFETY))


def _weights(p: Pairs) -> F8:
    return np.minimum(_safe(p.d), _VERL_CAP)


def _ess(weights: F8) -> float:
    return float(1.0 / np.mean((weights / (weights.mean() + 1e-8)) ** 2))


def _sequence_ratios(p: Pairs) -> F8:
    """[S] TRL's mode sequence_mask: the product of a sequence's ratios, 0 where it is above the cap."""
    ratio = np.exp(p.sums(p.d))
    return np.where(ratio > _TRL_CAP, 0.0, ratio)


def _token_ratios(p: Pairs) -> F8:
    return np.minimum(np.exp(p.d), _TRL_CAP)


def _log_ppl(p: Pairs) -> F8:
    """[S] verl's log_ppl_diff of each sequence: mean rollout − mean old."""
    return p.means(-p.d)


def _new(p: Pairs) -> F8:
    """[M] PipelineRL's log-ratio: the updated policy over the engine's values."""
    return p.current - p.rollout


def _clipped(p: Pairs) -> F8:
    ratio = np.exp(_new(p))
    return ((ratio < 1 - p.clip[0]) | (ratio > 1 + p.clip[1])).astype(np.float64)


def _dppo(p: Pairs, sign: int) -> F8:
    """[M] prime-rl's is_masked_high (+1) or is_masked_low (−1)."""
    delta = np.exp(p.old) - np.exp(p.rollout)
    invalid = delta > _DPPO if sign > 0 else delta < -_DPPO
    hit = invalid & (np.sign(p.advantage) == sign)
    return np.where(np.isfinite(p.advantage), hit.astype(np.float64), np.nan)


_TRL = "huggingface/trl, trl/trainer/grpo_trainer.py, _generate_and_score_completions"
_VERL = "verl-project/verl, verl/trainer/ppo/rollout_corr_helper.py, compute_offpolicy_metrics"
_VERL_IS = "verl-project/verl, verl/trainer/ppo/rollout_corr_helper.py, compute_is_metrics (token, threshold 2)"
_VERL_P = "verl-project/verl, verl/utils/debug/metrics.py, calculate_debug_metrics"
_NEMO = "NVIDIA-NeMo/RL, nemo_rl/algorithms/loss_functions.py, ClippedPGLossFn"
_PRIME = "PrimeIntellect-ai/prime-rl, src/prime_rl/trainer/rl/loss.py, compute_importance_ratio_and_mismatch_kl"
_DPPO_AT = "PrimeIntellect-ai/prime-rl, src/prime_rl/trainer/rl/token_export.py (dppo_mask_low, _high 0.2)"
_PIPELINE = "ServiceNow/PipelineRL, pipelinerl/finetune/rl/__init__.py, rl_step"
_SKY = "NovaSky-AI/SkyRL, skyrl/train/trainer.py, fwd_logprobs_values_reward"
_OPEN = "allenai/open-instruct, open_instruct/grpo_fast.py, PolicyTrainerRayProcess"
_TITAN = "pytorch/torchtitan, torchtitan/experiments/rl/actors/trainer.py, compute_logprob_drift"
_AREAL = "inclusionAI/AReaL, areal/utils/functional.py, ppo_actor_loss_fn"
_SLIME = "THUDM/slime, slime/backends/megatron_utils/loss.py, policy_loss_function"
_ORLHF = "OpenRLHF/OpenRLHF, openrlhf/models/loss.py, PolicyLoss"

METRICS = (
    Metric("sampling/sampling_logp_difference/mean", "TRL", "mean |d|", "nats", _TRL, lambda p: np.abs(p.d).mean()),
    Metric("sampling/sampling_logp_difference/max", "TRL", "max |d|", "nats", _TRL, lambda p: np.abs(p.d).max()),
    Metric("sampling/importance_sampling_ratio/min", "TRL sequence_mask", "min over sequences of e^Σd, 0 above 3",
           "ratio",
           _TRL, lambda p: _sequence_ratios(p).min()),
    Metric("sampling/importance_sampling_ratio/mean", "TRL sequence_mask", "mean over sequences of e^Σd, 0 above 3",
           "ratio", _TRL, lambda p: _sequence_ratios(p).mean()),
    Metric("sampling/importance_sampling_ratio/max", "TRL sequence_mask", "max over sequences of e^Σd, 0 above 3",
           "ratio",
           _TRL, lambda p: _sequence_ratios(p).max()),
    Metric("sampling/importance_sampling_ratio/min", "TRL token_truncate", "min of min(r, 3)", "ratio", _TRL,
           lambda p: _token_ratios(p).min()),
    Metric("sampling/importance_sampling_ratio/mean", "TRL token_truncate", "mean of min(r, 3)", "ratio", _TRL,
           lambda p: _token_ratios(p).mean()),
    Metric("sampling/importance_sampling_ratio/max", "TRL token_truncate", "max of min(r, 3)", "ratio", _TRL,
           lambda p: _token_ratios(p).max()),
    Metric("training/rollout_probs_diff_mean", "verl", "mean |e^old − e^rollout|", "probability", _VERL_P,
           lambda p: np.abs(np.exp(p.old) - np.exp(p.rollout)).mean()),
    Metric("training/rollout_probs_diff_max", "verl", "max |e^old − e^rollout|", "probability", _VERL_P,
           lambda p: np.abs(np.exp(p.old) - np.exp(p.rollout)).max()),
    Metric("training/rollout_probs_diff_std", "verl", "standard deviation of |e^old − e^rollout|", "probability",
           _VERL_P,
           lambda p: _std(np.abs(np.exp(p.old) - np.exp(p.rollout)))),
    Metric("training/rollout_actor_probs_pearson_corr", "verl", "Pearson's correlation of e^old and e^rollout",
           "−1 to 1",
           _VERL_P, lambda p: np.corrcoef(np.exp(p.old), np.exp(p.rollout))[0, 1] if p.old.size > 1 else np.nan),
    Metric("rollout_corr/kl", "verl", "mean −d", "nats", _VERL, lambda p: -p.d.mean()),
    Metric("rollout_corr/k3_kl", "verl", "mean r − d − 1", "nats", _VERL, lambda p: k3(p.d).mean()),
    Metric("rollout_corr/training_ppl", "verl", "mean over sequences of e^−mean old", "perplexity", _VERL,
           lambda p: np.exp(-p.means(p.old)).mean()),
    Metric("rollout_corr/rollout_ppl", "verl", "mean over sequences of e^−mean rollout", "perplexity", _VERL,
           lambda p: np.exp(-p.means(p.rollout)).mean()),
    Metric("rollout_corr/log_ppl_diff", "verl", "sequence mean of −d", "nats", _VERL, lambda p: _log_ppl(p).mean()),
    Metric("rollout_corr/log_ppl_abs_diff", "verl", "mean over sequences of |mean d|", "nats", _VERL,
           lambda p: np.abs(_log_ppl(p)).mean()),
    Metric("rollout_corr/log_ppl_diff_max", "verl", "max over sequences of mean −d", "nats", _VERL,
           lambda p: _log_ppl(p).max()),
    Metric("rollout_corr/log_ppl_diff_min", "verl", "min over sequences of mean −d", "nats", _VERL,
           lambda p: _log_ppl(p).min()),
    Metric("rollout_corr/ppl_ratio", "verl", "mean over sequences of e^(mean −d)", "ratio", _VERL,
           lambda p: np.exp(_log_ppl(p)).mean()),
    Metric("rollout_corr/chi2_token", "verl", "mean r² − 1", "", _VERL, lambda p: (_safe(p.d) ** 2).mean() - 1),
    Metric("rollout_corr/chi2_seq", "verl", "mean over sequences of e^(2 Σd) − 1", "", _VERL,
           lambda p: (_safe(p.sums(p.d)) ** 2).mean() - 1),
    Metric("rollout_corr/rollout_is_mean", "verl", "mean of min(r, 2)", "ratio", _VERL_IS,
           lambda p: _weights(p).mean()),
    Metric("rollout_corr/rollout_is_max", "verl", "max of min(r, 2)", "ratio", _VERL_IS, lambda p: _weights(p).max()),
    Metric("rollout_corr/rollout_is_min", "verl", "min of min(r, 2)", "ratio", _VERL_IS, lambda p: _weights(p).min()),
    Metric("rollout_corr/rollout_is_std", "verl", "standard deviation of min(r, 2)", "ratio", _VERL_IS,
           lambda p: np.std(_weights(p))),
    Metric("rollout_corr/rollout_is_ratio_fraction_high", "verl", "share of r > 2", "share", _VERL_IS,
           lambda p: (_safe(p.d) > _VERL_CAP).mean()),
    Metric("rollout_corr/rollout_is_ratio_fraction_low", "verl", "share of r < 1/2", "share", _VERL_IS,
           lambda p: (_safe(p.d) < 1 / _VERL_CAP).mean()),
    Metric("rollout_corr/rollout_is_eff_sample_size", "verl", "(mean w)² / mean w², w = min(r, 2)", "share", _VERL_IS,
           lambda p: _ess(_weights(p))),
    Metric("rollout_corr/rollout_is_seq_mean", "verl", "sequence mean of min(r, 2)", "ratio", _VERL_IS,
           lambda p: p.means(_weights(p)).mean()),
    Metric("rollout_corr/rollout_is_seq_max_deviation", "verl", "max over sequences of |mean min(r, 2) − 1|", "ratio",
           _VERL_IS, lambda p: np.abs(p.means(_weights(p)) - 1).max()),
    Metric("mismatch_kl", "prime-rl", "mean r − d − 1", "nats", _PRIME, lambda p: k3(p.d).mean()),
    Metric("is_masked_high", "prime-rl", "share of e^old − e^rollout > 0.2 with an advantage above 0", "share",
           _DPPO_AT,
           lambda p: _dppo(p, 1).mean()),
    Metric("is_masked_low", "prime-rl", "share of e^old − e^rollout < −0.2 with an advantage below 0", "share",
           _DPPO_AT,
           lambda p: _dppo(p, -1).mean()),
    Metric("token_mult_prob_error", "NeMo-RL", "mean e^|d|", "ratio", _NEMO, lambda p: np.exp(np.abs(p.d)).mean()),
    Metric("gen_kl_error", "NeMo-RL", "mean r − d − 1", "nats", _NEMO, lambda p: k3(p.d).mean()),
    Metric("policy_kl_error", "NeMo-RL", "mean 1/r + d − 1", "nats", _NEMO, lambda p: k3(-p.d).mean()),
    Metric("js_divergence_error", "NeMo-RL", "mean ½ k3(old ‖ m) + ½ k3(rollout ‖ m), m their mean probability", "nats",
           _NEMO, _js),
    Metric("sampling_importance_ratio", "NeMo-RL", "mean r", "ratio", _NEMO, lambda p: np.exp(p.d).mean()),
    Metric("rl/kl_new_old", "PipelineRL", "sequence mean of e^x − x − 1, x = current − rollout", "nats", _PIPELINE,
           lambda p: p.means(k3(_new(p))).mean()),
    Metric("rl/mean_abs_log_ratio_new_old", "PipelineRL", "sequence mean of |current − rollout|", "nats", _PIPELINE,
           lambda p: p.means(np.abs(_new(p))).mean()),
    Metric("rl/ratio_new_old", "PipelineRL", "sequence mean of e^(current − rollout)", "ratio", _PIPELINE,
           lambda p: p.means(np.exp(_new(p))).mean()),
    Metric("rl/ratio_new_old_sum", "PipelineRL", "sum of e^(current − rollout)", "ratio", _PIPELINE,
           lambda p: np.exp(_new(p)).sum()),
    Metric("rl/ratio_new_old_squared_sum", "PipelineRL", "sum of e^(2 (current − rollout))", "ratio", _PIPELINE,
           lambda p: np.exp(2 * _new(p)).sum()),
    Metric("rl/clamp_log_ratio_new_old_indicator", "PipelineRL",
           "sequence mean of e^(current − rollout) outside the clip "
           "range (ppo)", "share", _PIPELINE, lambda p: p.means(_clipped(p)).mean()),
    Metric("vllm_kl", "OpenRLHF", "mean −d", "nats", _ORLHF, lambda p: -p.d.mean()),
    Metric("train/train_rollout_logprob_abs_diff", "slime", "sequence mean of |d|", "nats", _SLIME,
           lambda p: p.means(np.abs(p.d)).mean()),
    Metric("policy/rollout_train_logprobs_abs_diff_mean", "SkyRL", "mean |d|", "nats", _SKY,
           lambda p: np.abs(p.d).mean()),
    Metric("policy/rollout_train_logprobs_abs_diff_std", "SkyRL", "standard deviation of |d|", "nats", _SKY,
           lambda p: _std(np.abs(p.d))),
    Metric("policy/rollout_train_logprobs_abs_diff_max", "SkyRL", "max |d|", "nats", _SKY, lambda p: np.abs(p.d).max()),
    Metric("policy/rollout_train_logprobs_abs_diff_min", "SkyRL", "min |d|", "nats", _SKY, lambda p: np.abs(p.d).min()),
    Metric("debug/vllm_vs_local_logprob_diff_mean", "open-instruct", "mean |d|", "nats", _OPEN,
           lambda p: np.abs(p.d).mean()),
    Metric("debug/vllm_vs_local_logprob_diff_max", "open-instruct", "max |d|", "nats", _OPEN,
           lambda p: np.abs(p.d).max()),
    Metric("debug/vllm_vs_local_logprob_diff_std", "open-instruct", "standard deviation of |d|", "nats", _OPEN,
           lambda p: _std(np.abs(p.d))),
    Metric("debug/vllm_local_reverse_kl", "open-instruct", "mean −e^rollout d", "nats", _OPEN,
           lambda p: (-np.exp(p.rollout) * p.d).mean()),
    Metric("bit_wise/logprob_diff/mean", "torchtitan", "mean d", "nats", _TITAN, lambda p: p.d.mean()),
    Metric("bit_wise/logprob_diff/max", "torchtitan", "max |d|", "nats", _TITAN, lambda p: np.abs(p.d).max()),
    Metric("bit_wise/ratio_tokens_different/mean", "torchtitan", "share of |d| > 1e-6", "share", _TITAN,
           lambda p: (np.abs(p.d) > 1e-6).mean()),
    Metric("behave_imp_weight", "AReaL", "mean r", "ratio", _AREAL, lambda p: np.exp(p.d).mean()),
    Metric("behave_approx_kl", "AReaL", "mean d", "nats", _AREAL, lambda p: p.d.mean()),
)  # fmt: skip
