"""Whole verdicts on seeded runs: what is found, since which token, and that clean runs stay clean."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.synthetic import Made, edit, make_run, off_by
from tracekit.diagnose.data import KV_KEPT, OTHER_PRECISION, OTHER_SHAPE, TRAINER, Run
from tracekit.diagnose.noise import measure_noise
from tracekit.diagnose.remarks import Remark
from tracekit.diagnose.semantic import MARGIN
from tracekit.diagnose.verdict import Verdict
from tracekit.diagnose.verdict import judge as judge_run


def judge(run: Run, expect: str = "processed") -> Verdict:
    return judge_run(run, expect=expect).verdict


def codes(remarks: list[Remark]) -> list[str]:
    return [remark.code for remark in remarks]


def test_a_clean_run_is_clean():
    verdict = judge(make_run(Made()))
    assert verdict.layer == "none"
    assert verdict.semantic.kind == "processed"
    assert verdict.semantic.margin > 100
    assert verdict.since is None
    assert verdict.before == verdict.after
    assert verdict.before.ratio_mean == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize(
    "made", [Made(), Made(temperature=1.0, top_p=1.0), Made(recorded="raw"), Made(engine_eps=0.045)]
)
def test_at_most_one_clean_rollout_in_a_hundred_has_an_onset(made):
    expect = made.recorded
    verdicts = [judge(make_run(replace(made, seed=seed)), expect=expect) for seed in range(40)]
    assert sum(v.num_with_onset for v in verdicts) <= 0.01 * 40 * made.num_rollouts
    assert all(v.layer == "none" for v in verdicts)


def test_raw_where_processed_is_expected_is_semantic_from_the_first_free_token():
    verdict = judge(make_run(Made(recorded="raw", declared="raw_logprobs")))
    assert verdict.layer == "semantic"
    assert verdict.semantic.kind == "raw"
    assert verdict.semantic.margin > 100
    assert verdict.since is not None and verdict.since.output_index == 0
    assert verdict.before.ratio_mean > 1.1
    assert verdict.after.ratio_mean == pytest.approx(1.0, abs=0.02)
    assert verdict.after.mismatch_kl < 0.1 * verdict.before.mismatch_kl
    assert verdict.left == "none"
    assert not verdict.semantic.contradicts_declared


def test_processed_where_raw_is_expected_is_semantic():
    run = make_run(Made())
    verdict = judge(run, expect="raw")
    assert verdict.layer == "semantic"
    assert verdict.semantic.kind == "processed"
    assert verdict.since is not None
    (first,) = np.flatnonzero((run.rollout == verdict.since_rollout) & (run.position == verdict.since.position))
    # what names the mismatch is told in the numbers that were expected, and so is its noise
    assert verdict.since.d == run.trainer.raw_logprob[first] - run.rollout_logprob[first]
    assert verdict.since.sigma == measure_noise(run, "raw").sigma[first]


def test_raw_is_fine_for_a_trainer_that_expects_raw():
    assert judge(make_run(Made(recorded="raw", declared="raw_logprobs")), expect="raw").layer == "none"


def test_without_temperature_and_truncation_raw_and_processed_are_the_same():
    for expect in ("raw", "processed"):
        verdict = judge(make_run(Made(temperature=1.0, top_p=1.0, recorded="raw")), expect=expect)
        assert verdict.semantic.kind == "raw = processed here"
        assert verdict.layer == "none"
        assert "same numbers" in codes(verdict.limits)


def test_an_engine_that_declares_something_else_is_a_finding():
    verdict = judge(make_run(Made(recorded="raw", declared="processed_logprobs")), expect="raw")
    assert verdict.semantic.contradicts_declared
    assert verdict.semantic.declared == ["processed_logprobs"]
    assert verdict.findings == [Remark("declared otherwise", {"nats": verdict.semantic.margin})]


def test_changed_weights_are_found_near_the_first_token_affected():
    verdict = judge(make_run(Made(shift=0.6, shift_from=16)))
    assert verdict.layer == "inference path"
    onsets = np.array([r.onset.output_index for r in verdict.rollouts if r.onset])
    assert onsets.size >= 14
    assert np.median(np.abs(onsets - 16)) <= 2
    assert verdict.since is not None and abs(verdict.since.output_index - 16) <= 4


def test_since_is_the_onset_that_was_sampled_first_whatever_its_position():
    run = make_run(Made(shift=0.6, num_rollouts=8))
    backwards = replace(run, engine_step=run.output_index + 1000 * (7 - run.rollout))
    verdict = judge(backwards)
    last = max(i for i, rollout in enumerate(verdict.rollouts) if rollout.onset)
    assert verdict.since_rollout == last and verdict.since == verdict.rollouts[last].onset


def test_a_fault_in_few_rollouts_is_found_in_those_alone():
    verdict = judge(make_run(Made(shift=0.6, shift_rollouts=3)))
    assert verdict.layer == "inference path"
    hit = {i for i, r in enumerate(verdict.rollouts) if r.onset}
    assert hit == {0, 1, 2}


def test_another_temperature_than_recorded_explains_nothing_and_is_not_called_clean():
    verdict = judge(make_run(Made(engine_temperature=0.8, num_rollouts=24)))
    assert verdict.layer == "inference path"
    assert verdict.semantic.kind == "neither"
    assert verdict.semantic.excess > 1
    assert verdict.cause == "unexplained"


def test_raw_from_other_weights_is_semantic_and_says_what_is_left():
    verdict = judge(make_run(Made(recorded="raw", shift=0.6)))
    assert verdict.layer == "semantic"
    assert verdict.semantic.closest == "raw"
    assert verdict.left == "unexplained"


def test_not_finite_values_are_counted_and_named():
    def spoil(values):
        values[[3, 50]] = np.nan, -np.inf
        return values

    judged = judge_run(edit(make_run(Made()), spoil))
    assert judged.verdict.layer == "none"
    assert judged.verdict.before.num_not_finite == 2
    assert Remark("not finite", {"count": 2, "position": 8, "request": 0}) in judged.verdict.withheld
    assert not judged.tokens.beyond[[3, 50]].any()


def test_values_above_zero_are_a_finding():
    def spoil(values):
        values[0] = 0.5
        return values

    assert Remark("above zero", {"count": 1}) in judge(edit(make_run(Made()), spoil)).findings


def test_one_token_far_off_is_the_first_beyond_noise():
    run = make_run(Made())
    free = np.flatnonzero((run.trainer.kept_count > 3) & (run.rollout == 5))
    spoiled = edit(run, lambda values: np.where(np.arange(values.size) == free[2], values - 4.0, values))
    onset = judge(spoiled).rollouts[5].first_beyond_noise
    assert onset is not None
    assert onset.position == run.position[free[2]]
    assert onset.token_id == run.token_id[free[2]]
    assert onset.d == pytest.approx(run.trainer.forced_logprob[free[2]] - spoiled.rollout_logprob[free[2]])
    assert onset.output_index == onset.position - 5


@pytest.mark.parametrize("num_rollouts", [1, 64])
@pytest.mark.parametrize("eps", [0.04, 1e-6])
@pytest.mark.parametrize(("value", "layer"), [(-20.0, "inference path"), (3.0, "semantic")])
def test_one_token_that_no_noise_explains_is_not_clean_in_however_many_rollouts(value, layer, eps, num_rollouts):
    made = Made(num_rollouts=num_rollouts, length=24, eps=eps, engine_eps=eps)
    assert judge(make_run(made)).layer == "none"
    run = make_run(made)
    free = int(np.flatnonzero((run.trainer.kept_count > 3) & (run.rollout == num_rollouts // 2))[1])
    verdict = judge(edit(run, lambda values: np.where(np.arange(values.size) == free, value, values)))
    assert verdict.layer == layer
    assert verdict.since is not None and verdict.since.position == run.position[free]
    assert verdict.since_rollout == run.rollout[free]


def test_bit_equal_rollouts_have_no_onset_at_all():
    run = make_run(Made(num_rollouts=3))
    same = replace(run, rollout_logprob=run.trainer.forced_logprob)
    for rollout in judge(same).rollouts:
        assert rollout.first_not_bit_equal is None and rollout.onset is None


def test_the_noise_floor_is_that_of_the_run():
    quiet = measure_noise(make_run(Made(eps=0.004, engine_eps=0.004)), "raw").floor
    loud = measure_noise(make_run(Made()), "raw").floor
    assert loud.scale == pytest.approx(10 * quiet.scale, rel=0.25)
    assert loud.detectable > 5 * quiet.detectable


def test_the_engine_is_allowed_no_noise_beyond_its_share():
    verdict = judge(make_run(Made(engine_eps=0.4)))
    assert verdict.noise.excess > 1 and "whole run" in codes(verdict.findings)
    assert verdict.layer == "inference path"


def test_a_token_beyond_noise_says_better_where_a_shift_starts_than_the_shift_does():
    alone = judge(make_run(Made(shift=0.6, shift_from=16))).rollouts[1].onset
    assert alone is not None
    early = replace(alone, position=alone.position - 2, output_index=alone.output_index - 2)
    rollout = replace(
        judge(make_run(Made(num_rollouts=4))).rollouts[0],
        first_beyond_noise=alone,
        shift_start=early,
        shift_range=[early.output_index - 1, alone.output_index],
    )
    assert rollout.onset == alone
    assert replace(rollout, shift_range=[early.output_index - 1, early.output_index + 1]).onset == early


def test_indistinguishable_readings_are_said_not_guessed():
    run = make_run(Made())
    twin = replace(run, scores={**run.scores, "sampling.no_truncation": run.trainer})
    verdict = judge(twin)
    assert verdict.semantic.kind == "not told apart"
    assert verdict.layer == "none"
    assert "not told apart" in codes(verdict.limits)


def test_kv_is_said_to_be_recomputed_where_the_trace_does_not_tell():
    run = make_run(Made(num_rollouts=4))
    assert "kv recomputed" not in codes(judge(run).limits)
    assert Remark("kv recomputed", {"count": 3}) in judge(replace(run, num_kv_unknown=3)).limits


@pytest.mark.parametrize("right", ["recorded", "kept"])
def test_the_history_of_the_kv_that_the_values_fit_is_ahead_in_every_rollout_where_the_two_differ(right):
    run = make_run(Made(num_rollouts=6))
    away = np.random.default_rng(4).normal(0, 0.5, run.token_id.size) * (run.output_index >= 20)
    other = off_by(run.trainer, away)
    for name in ("raw_logprob", "forced_logprob"):
        getattr(other, name)[run.rollout >= 4] = np.nan  # a sample
    scores = {**run.scores, KV_KEPT: other}
    if right == "kept":
        moved = {name: getattr(run.trainer, name) + away for name in ("raw_logprob", "forced_logprob")}
        scores = {**run.scores, TRAINER: replace(run.trainer, **moved), KV_KEPT: run.trainer}
    verdict = judge(replace(run, scores=scores))
    (kv,) = verdict.kv
    if right == "recorded":
        assert (kv.name, kv.num_rollouts, kv.num_recorded_better) == ("kept", 4, 4) and kv.median_nats > 5
        assert kv.d_abs_mean > 3 * kv.d_abs_mean_recorded and not any("kv" in code for code in codes(verdict.findings))
    else:
        assert kv.num_recorded_better == 0 and kv.total_nats < -5 and "values say kv kept" in codes(verdict.findings)


def test_tokens_that_a_sample_left_out_do_not_matter():
    run = make_run(Made())
    part = run.rollout < 4
    sample = run.scores[OTHER_PRECISION].each(np.copy)
    for name in ("raw_logprob", "forced_logprob", "processed_logprob"):
        getattr(sample, name)[~part] = np.nan
    verdict = judge(replace(run, scores={**run.scores, OTHER_SHAPE: sample, OTHER_PRECISION: sample}))
    assert verdict.layer == "none"
    assert 0 < verdict.noise.num_tokens <= np.count_nonzero(part)


def test_a_sustained_shift_alone_is_named_from_where_it_starts():
    """No token stands out by itself: only the evidence that they add up to names the layer."""
    made = Made(num_rollouts=12, length=160, eps=0.02, engine_eps=0.02, shift=0.07, shift_from=60, shift_rollouts=3)
    judged = judge_run(make_run(made))
    verdict = judged.verdict
    assert not judged.tokens.beyond.any() and verdict.semantic.kind == "processed"
    assert (verdict.layer, verdict.cause) == ("inference path", "leaves replay")
    assert verdict.chance < 0.001
    starts = [r.shift_start.output_index for r in verdict.rollouts if r.shift_start]
    assert len(starts) == verdict.num_with_onset == 3
    assert abs(np.median(starts) - made.shift_from) <= 10
    assert verdict.since is not None and verdict.since.output_index == min(starts)
    assert judge(make_run(replace(made, shift=0.0))).layer == "none"


def test_the_first_token_that_is_the_most_likely_one_on_one_side_only_is_an_onset():
    run = make_run(Made(num_rollouts=6))
    same = replace(run, rank=np.where(run.trainer.argmax_token_id == run.token_id, 1, 2))
    assert all(r.first_other_choice is None for r in judge(same).rollouts)
    rank = same.rank.copy()
    rank[3 * 48 + 7 :] = 3 - rank[3 * 48 + 7 :]
    rank[4 * 48 :] = 0  # none was recorded
    onsets = [r.first_other_choice for r in judge(replace(run, rank=rank)).rollouts]
    assert [onset and onset.output_index for onset in onsets] == [None, None, None, 7, None, None]


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_a_reading_that_explains_nothing_does_not_win_by_chance(seed):
    """Other weights, on few tokens: one of two readings that are both wrong is always the nearer one."""
    verdict = judge(make_run(Made(num_rollouts=4, length=24, shift=3.0, seed=seed)))
    assert verdict.semantic.margin > MARGIN and (verdict.layer, verdict.causes) == ("inference path", [])
