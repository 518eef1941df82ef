"""The noise floor: from controls alone, in log odds, at any temperature and certainty."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.synthetic import Made, make_run
from tracekit.diagnose.data import OTHER_PRECISION, OTHER_SHAPE
from tracekit.diagnose.noise import measure_noise
from tracekit.diagnose.residual import residuals
from tracekit.diagnose.verdict import judge


@pytest.mark.parametrize(("temperature", "top_p"), [(0.03, 1.0), (0.01, 1.0), (0.03, 0.9), (0.01, 0.9)])
def test_a_clean_run_at_a_temperature_at_which_nearly_all_tokens_are_certain_is_clean(temperature, top_p):
    run = make_run(Made(temperature=temperature, top_p=top_p))
    verdict = judge(run).verdict
    assert np.median(-np.expm1(run.trainer.forced_logprob)) < 1e-9
    assert verdict.layer == "none" and verdict.num_with_onset <= 1  # of 16


def test_a_clean_run_of_a_policy_that_hardly_chooses_is_clean():
    """19 of 20 tokens have an alternative of 1e-5 or less; the others tell the noise."""
    run = make_run(Made(temperature=1.0, top_p=1.0, certain=0.95))
    assert np.mean(-np.expm1(run.trainer.raw_logprob) < 1e-4) > 0.9
    found = measure_noise(run, "raw")
    assert found.floor.precision_noise == pytest.approx(0.04, rel=0.3)
    assert judge(run).verdict.layer == "none"


def test_a_floor_from_a_tenth_of_the_tokens_is_passed_by_no_more_clean_rollouts_than_it_says():
    """One clean rollout in 100 may; noise that is measured on all of the tokens gives about the same line."""
    num_onsets = 0
    for seed in range(4):
        run = make_run(Made(num_rollouts=64, temperature=1.0, top_p=1.0, seed=seed))
        whole = measure_noise(run, "raw").floor
        scores = {name: of.each(np.copy) for name, of in run.scores.items()}
        for name in (OTHER_SHAPE, OTHER_PRECISION):
            for column in (scores[name].raw_logprob, scores[name].processed_logprob, scores[name].forced_logprob):
                column[run.rollout % 10 != 0] = np.nan
        sampled = replace(run, scores=scores)
        assert measure_noise(sampled, "raw").floor.scale == pytest.approx(whole.scale, rel=0.2)
        verdict = judge(sampled).verdict
        assert verdict.layer == "none"
        num_onsets += verdict.num_with_onset
    assert num_onsets <= 8  # of 256, of which 2.6 are allowed: more comes of chance in one case in 1,000


def test_noise_is_the_same_at_every_temperature():
    scales = [measure_noise(make_run(Made(temperature=t, top_p=1.0)), "processed").floor.scale for t in (0.03, 0.3, 1)]
    assert scales == pytest.approx([np.sqrt(2) * 0.04] * 3, rel=0.15)


def test_the_line_does_not_follow_what_is_judged():
    """A fault from the first token on, in every token, raises nothing: it is found as one of the whole run."""
    clean, faulty = (measure_noise(make_run(Made(shift=shift)), "processed") for shift in (0.0, 0.12))
    assert faulty.floor.scale == pytest.approx(clean.floor.scale, rel=0.1)
    assert clean.floor.excess < 0.9 < 1 < faulty.floor.excess


def test_both_sides_in_float32_have_a_line_of_float32():
    run = make_run(Made(eps=4e-6, engine_eps=1e-5))
    float32 = replace(run, dtype="float32", engine_dtype="float32", head_dtype="float32")
    found = measure_noise(float32, "processed")
    assert found.floor.detectable < 1e-3 and judge(float32).verdict.layer == "none"
    moved = replace(float32, rollout_logprob=np.minimum(run.rollout_logprob - 0.003, 0.0))
    assert judge(moved).verdict.layer != "none"


def test_a_head_in_bfloat16_adds_what_rounding_a_logit_does_and_one_side_alone_counts_once():
    run = make_run(Made())
    both = measure_noise(run, "raw").floor
    assert measure_noise(replace(run, engine_dtype="float32"), "raw").floor.scale == pytest.approx(
        both.scale / np.sqrt(2), rel=0.01
    )
    rounded = measure_noise(replace(run, head_dtype="bfloat16"), "raw").floor
    assert rounded.head_noise == pytest.approx(0.125 / np.sqrt(12), rel=0.01)  # spacing of bfloat16 from 16 to 32
    assert rounded.scale == pytest.approx(np.hypot(both.scale, rounded.head_noise), rel=0.01)


def test_where_no_token_has_a_choice_the_resolution_of_the_dtype_stands_in():
    run = make_run(Made(num_rollouts=2))
    sure = run.trainer.each(np.copy)
    for name in ("raw_logprob", "forced_logprob", "raw_noise_gain", "processed_noise_gain"):
        getattr(sure, name)[:] = 0.0
    found = measure_noise(replace(run, scores={"trainer": sure, OTHER_SHAPE: sure, OTHER_PRECISION: sure}), "raw")
    assert found.floor.num_tokens == 0 and 0.03 < found.floor.precision_noise + found.floor.scale < 0.1


def test_a_token_lifted_out_of_certainty_by_as_much_as_noise_does_is_not_beyond_it():
    """At T 0.01 a gap of 0.3 logits is 1 − p = 1e-13; noise of 0.2 logits makes that 5e-5."""
    run = make_run(Made(num_rollouts=2, temperature=0.01, top_p=1.0))
    scores = run.trainer.each(np.copy)
    scores.forced_logprob[:] = -1e-13
    scores.processed_noise_gain[:] = np.sqrt(2) * 1e-13 / 0.01
    scores.kept_count[:] = 160
    scores.edge_logprobs[:] = scores.forced_logprob[:, None]
    z = residuals(run, scores, "processed", np.full(run.token_id.size, -5e-5), 0.06).z
    assert np.all(np.abs(z) < 2)
