"""Every framework's metric equals what the framework computes.

The numbers were made once, on the framework's own layout (padded batches and masks, in torch), by following the code
that each row of METRICS names, and copied here; nothing of tracekit took part.
"""

import numpy as np
import pytest

from tracekit.diagnose.frameworks import METRICS, Pairs, measure_all
from tracekit.diagnose.objective import corrected, levels

ROLLOUT = [
    -0.277,
    -0.647,
    -1.348,
    -0.056,
    -0.141,
    -1.766,
    -1.627,
    -3.274,
    -1.097,
    -3.9,
    -1.031,
    -1.585,
    -4.747,
    -0.046,
    -0.593,
    -0.1,
    -0.378,
    -0.322,
    -0.073,
    -0.016,
]
OLD = [
    -0.699,
    -0.191,
    -1.393,
    -0.001,
    -1.619,
    -1.888,
    -1.078,
    -3.97,
    -1.284,
    -0.6,
    -0.723,
    -1.011,
    -4.987,
    -0.001,
    -0.001,
    -2.0,
    -0.001,
    -1.388,
    -0.001,
    -0.001,
]
CURRENT = [
    -0.386,
    -0.21,
    -1.257,
    -0.028,
    -1.695,
    -2.191,
    -0.999,
    -4.104,
    -1.325,
    -0.763,
    -0.653,
    -0.961,
    -4.767,
    -0.258,
    -0.133,
    -1.975,
    -0.355,
    -1.319,
    -0.051,
    -0.001,
]
ADVANTAGE = [
    0.7,
    0.7,
    0.7,
    0.7,
    0.7,
    -0.05,
    -0.05,
    -0.05,
    1.25,
    1.25,
    1.25,
    1.25,
    1.25,
    1.25,
    1.25,
    -0.5,
    0.0,
    0.0,
    0.0,
    0.0,
]
SEQUENCE = [
    0,
    0,
    0,
    0,
    0,
    1,
    1,
    1,
    2,
    2,
    2,
    2,
    2,
    2,
    2,
    3,
    4,
    4,
    4,
    4,
]

# (framework, name) -> value, with a clip range of 0.8 to 1.2
NUMBERS = {
    ("TRL", "sampling/sampling_logp_difference/mean"): 0.62495,
    ("TRL", "sampling/sampling_logp_difference/max"): 3.3,
    ("TRL sequence_mask", "sampling/importance_sampling_ratio/min"): 0,
    ("TRL token_truncate", "sampling/importance_sampling_ratio/min"): 0.1495686192,
    ("TRL sequence_mask", "sampling/importance_sampling_ratio/mean"): 0.3399561166,
    ("TRL token_truncate", "sampling/importance_sampling_ratio/mean"): 1.111836995,
    ("TRL sequence_mask", "sampling/importance_sampling_ratio/max"): 0.7641432556,
    ("TRL token_truncate", "sampling/importance_sampling_ratio/max"): 3,
    ("verl", "training/rollout_probs_diff_mean"): 0.2244516185,
    ("verl", "training/rollout_probs_diff_max"): 0.7695021348,
    ("verl", "training/rollout_probs_diff_std"): 0.2376225602,
    ("verl", "training/rollout_actor_probs_pearson_corr"): 0.5837842307,
    ("verl", "rollout_corr/training_ppl"): 4.90041463,
    ("verl", "rollout_corr/rollout_ppl"): 3.919016883,
    ("verl", "rollout_corr/kl"): -0.00935,
    ("verl", "rollout_corr/k3_kl"): 1.308118941,
    ("verl", "rollout_corr/log_ppl_diff"): 0.359907619,
    ("verl", "rollout_corr/log_ppl_abs_diff"): 0.6108790476,
    ("verl", "rollout_corr/log_ppl_diff_max"): 1.9,
    ("verl", "rollout_corr/log_ppl_diff_min"): -0.6274285714,
    ("verl", "rollout_corr/ppl_ratio"): 2.161648041,
    ("verl", "rollout_corr/chi2_token"): 36.9625237,
    ("verl", "rollout_corr/chi2_seq"): 1304.980773,
    ("verl", "rollout_corr/rollout_is_mean"): 1.061836995,
    ("verl", "rollout_corr/rollout_is_max"): 2,
    ("verl", "rollout_corr/rollout_is_min"): 0.1495686192,
    ("verl", "rollout_corr/rollout_is_ratio_fraction_high"): 0.05,
    ("verl", "rollout_corr/rollout_is_ratio_fraction_low"): 0.2,
    ("verl", "rollout_corr/rollout_is_std"): 0.529401959,
    ("verl", "rollout_corr/rollout_is_eff_sample_size"): 0.8009138139,
    ("verl", "rollout_corr/rollout_is_seq_mean"): 0.8856142708,
    ("verl", "rollout_corr/rollout_is_seq_max_deviation"): 0.8504313808,
    ("prime-rl", "mismatch_kl"): 1.308118941,
    ("prime-rl", "is_masked_high"): 0.15,
    ("prime-rl", "is_masked_low"): 0.05,
    ("NeMo-RL", "token_mult_prob_error"): 3.158649568,
    ("NeMo-RL", "gen_kl_error"): 1.308118941,
    ("NeMo-RL", "policy_kl_error"): 0.4973926748,
    ("NeMo-RL", "js_divergence_error"): 0.1024558236,
    ("NeMo-RL", "sampling_importance_ratio"): 2.317468941,
    ("PipelineRL", "rl/kl_new_old"): 0.8528758003,
    ("PipelineRL", "rl/mean_abs_log_ratio_new_old"): 0.7866861905,
    ("PipelineRL", "rl/ratio_new_old"): 1.463202943,
    ("PipelineRL", "rl/ratio_new_old_sum"): 41.85625546,
    ("PipelineRL", "rl/ratio_new_old_squared_sum"): 553.8805337,
    ("PipelineRL", "rl/clamp_log_ratio_new_old_indicator"): 0.6728571429,
    ("OpenRLHF", "vllm_kl"): -0.00935,
    ("slime", "train/train_rollout_logprob_abs_diff"): 0.7957590476,
    ("SkyRL", "policy/rollout_train_logprobs_abs_diff_mean"): 0.62495,
    ("SkyRL", "policy/rollout_train_logprobs_abs_diff_std"): 0.8019153699,
    ("SkyRL", "policy/rollout_train_logprobs_abs_diff_max"): 3.3,
    ("SkyRL", "policy/rollout_train_logprobs_abs_diff_min"): 0.015,
    ("open-instruct", "debug/vllm_vs_local_logprob_diff_mean"): 0.62495,
    ("open-instruct", "debug/vllm_vs_local_logprob_diff_max"): 3.3,
    ("open-instruct", "debug/vllm_vs_local_logprob_diff_std"): 0.8019153699,
    ("open-instruct", "debug/vllm_local_reverse_kl"): 0.1407766762,
    ("torchtitan", "bit_wise/logprob_diff/mean"): 0.00935,
    ("torchtitan", "bit_wise/logprob_diff/max"): 3.3,
    ("torchtitan", "bit_wise/ratio_tokens_different/mean"): 1,
    ("AReaL", "behave_imp_weight"): 2.317468941,
    ("AReaL", "behave_approx_kl"): 0.00935,
}


def pairs(**changes):
    values = {"rollout": ROLLOUT, "old": OLD, "current": CURRENT, "advantage": ADVANTAGE, **changes}
    return Pairs(*(np.array(v, float) for v in values.values()), np.array(SEQUENCE), (0.2, 0.2))


@pytest.mark.parametrize("row", METRICS, ids=lambda row: f"{row.framework} {row.name}")
def test_a_metric_equals_the_frameworks_own(row):
    assert row.value(pairs()) == pytest.approx(NUMBERS[row.framework, row.name], rel=1e-9)


def test_every_row_has_its_formula_and_its_source():
    assert {(row.framework, row.name) for row in METRICS} == set(NUMBERS) and len(METRICS) == len(NUMBERS)
    assert all(row.formula and "/" in row.source for row in METRICS)


def test_without_tokens_nothing_is_measured():
    empty = np.empty(0)
    assert measure_all(Pairs(empty, empty, empty, empty, np.empty(0, np.int64), (0.2, 0.2))) == []


def test_the_total_is_the_backends_share_and_the_policys_token_by_token():
    token, mean, total = levels(pairs())
    assert [level.name for level in (token, mean, total)] == ["token", "sequence mean", "sequence sum"]
    assert (token.count, mean.count) == (len(OLD), max(SEQUENCE) + 1)
    new_rollout, new_old = np.exp(np.subtract(CURRENT, ROLLOUT)), np.exp(np.subtract(CURRENT, OLD))
    assert token.total.ratio_mean == pytest.approx(new_rollout.mean())
    assert token.policy.clip_rate == pytest.approx(np.mean((new_old < 0.8) | (new_old > 1.2)))
    assert token.total.ess == pytest.approx(new_rollout.sum() ** 2 / (len(OLD) * (new_rollout**2).sum()))
    by_sequence = [np.mean(np.subtract(CURRENT, ROLLOUT)[np.array(SEQUENCE) == s]) for s in range(max(SEQUENCE) + 1)]
    assert mean.total.kl == pytest.approx(np.mean(np.exp(by_sequence) - by_sequence - 1))  # GSPO's ratio


def test_a_trainer_that_did_not_step_has_no_share_of_its_own():
    for level in levels(pairs(current=OLD)):
        assert (level.policy.ratio_mean, level.policy.clip_rate, level.policy.kl, level.policy.ess) == (1, 0, 0, 1)
        assert level.total == level.backend


def test_with_the_scorers_values_on_one_side_only_the_other_sides_share_is_left():
    engine_right = corrected(pairs(), rollout=np.array(OLD))
    assert engine_right[0].backend.clip_rate == 0 and engine_right[0].policy == levels(pairs())[0].policy
    assert engine_right[0].total == engine_right[0].policy
