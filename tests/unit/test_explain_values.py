"""What recorded values are: rounded, of rounded parameters, of biased logits, missing; and what float32 alone does."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.synthetic import Made, make_run
from helpers.world import Sampler, World, play, run_of
from tracekit.diagnose.chance import binomial_tail
from tracekit.diagnose.data import NARROW_HEAD, ROUNDED_SAMPLING, TRAINER
from tracekit.diagnose.facts import Facts
from tracekit.diagnose.neighbours import other_row, rows_beside, shifted
from tracekit.diagnose.party import trainer_as_engine
from tracekit.diagnose.profile import to_bfloat16
from tracekit.diagnose.residual import sum_noise
from tracekit.diagnose.verdict import judge
from tracekit.diagnose.view import TrainerView

WORLD = World(num_rollouts=12, length=24, vocab=300, seed=1)
NUCLEUS = Sampler(temperature=0.7, top_p=0.9)
FINE = 1e-5  # logit noise of float32


def run_under(asked: Sampler, did: Sampler, change=lambda values: values, *, eps: float = FINE):
    played = play(WORLD, did, eps=eps)
    values = change(played.processed)
    return replace(run_of(WORLD, played, values, asked.params(), eps=eps), dtype="float32", engine_dtype="float32")


ROUNDINGS = {
    "bfloat16": lambda values: to_bfloat16(values),
    "float16": lambda values: values.astype(np.float16).astype(np.float64),
    "3 decimals": lambda values: np.round(values, 3).astype(np.float32).astype(np.float64),
}


@pytest.mark.parametrize("name", ROUNDINGS)
def test_values_that_were_rounded_after_they_were_computed_are_proved_by_themselves(name):
    verdict = judge(run_under(NUCLEUS, NUCLEUS, ROUNDINGS[name])).verdict
    (found,) = verdict.causes
    assert (verdict.layer, found.code, found.names) == ("semantic", "rounded logprobs", [name])
    assert np.isnan(found.margin) and found.share > 0.95 and verdict.left == "none"


def test_float32_values_of_a_run_that_is_off_are_not_called_rounded():
    off = run_under(NUCLEUS, NUCLEUS, lambda values: (values - 0.003).astype(np.float32).astype(np.float64))
    assert "rounded logprobs" not in [cause.code for cause in judge(off).verdict.causes]


def test_a_sampler_that_rounds_its_parameters_is_told_from_one_that_has_others():
    rounded = replace(NUCLEUS, temperature=0.69921875, top_p=0.8984375)
    run, told = run_under(NUCLEUS, rounded), run_under(rounded, rounded)
    run = replace(run, scores={**run.scores, ROUNDED_SAMPLING: told.scores[TRAINER]})
    verdict = judge(run).verdict
    found = verdict.causes[0]
    assert (verdict.layer, found.code) == ("semantic", "rounded sampling values")
    assert found.names == ["temperature 0.7 as 0.69921875", "top_p 0.9 as 0.8984375"]
    assert found.share > 0.9 and found.numbers["d_abs_after"] < 0.1 * found.numbers["d_abs_before"]


@pytest.mark.parametrize(("by", "eps"), [(1.5, FINE), (-1.0, FINE), (1.5, 0.02)])
def test_a_bias_that_no_request_names_is_found_with_its_ids_and_its_size(by, eps):
    warm = Sampler(temperature=0.9)
    verdict = judge(run_under(warm, replace(warm, biased=(100, 180, by)), eps=eps)).verdict
    found = verdict.causes[0]
    assert (verdict.layer, found.code) == ("semantic", "hidden bias")
    first, last = (int(part) for part in found.names[0].split(" to "))
    assert abs(first - 100) <= 8 and abs(last - 180) <= 8
    assert found.numbers["by"] == pytest.approx(by, abs=0.1)


def test_a_mask_that_comes_under_way_may_bar_what_was_drawn_before():
    warm, since = Sampler(temperature=0.9), 10
    played = play(WORLD, warm, eps=FINE, later=replace(warm, barred=tuple(range(100, 160))), since=since)
    early = played.tokens[:, :since]
    assert ((early >= 100) & (early < 160)).any()
    run = run_of(WORLD, played, played.processed, warm.params(), eps=FINE)
    verdict = judge(replace(run, dtype="float32", engine_dtype="float32")).verdict
    assert (verdict.layer, verdict.cause) == ("semantic", "hidden mask")
    assert verdict.since is not None and verdict.since.output_index == since


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_missing_values_are_named_where_they_are_many_and_the_rest_is_judged_by_itself(value):
    def spoil(values):
        values[:, 2::3] = value
        return values

    verdict = judge(run_under(NUCLEUS, NUCLEUS, spoil)).verdict
    assert (verdict.layer, [cause.code for cause in verdict.causes]) == ("semantic", ["sentinel values"])
    assert verdict.since is not None and verdict.since.output_index % 3 == 2
    assert verdict.semantic.kind == "processed" and verdict.left == "none"


def test_a_head_that_rounds_what_goes_into_it_too_is_suspected_and_then_proved():
    run = run_under(Sampler(), Sampler(low_head=True), eps=FINE)
    # hidden states that were rounded move the logits before they are
    noisy = run_under(Sampler(), Sampler(low_head=True, before=0.01), eps=FINE)
    assert judge(run).verdict.cause == judge(noisy).verdict.cause == "bfloat16 head"
    exact = noisy.trainer.each(np.copy)
    exact.forced_logprob[:] = exact.raw_logprob[:] = noisy.rollout_logprob
    found = judge(replace(noisy, scores={**noisy.scores, NARROW_HEAD: exact})).verdict.causes[0]
    assert found.code == "bfloat16 head" and found.share > 0.95 and "lm_head" in found.names
    unlike = judge(replace(noisy, scores={**noisy.scores, NARROW_HEAD: noisy.trainer})).verdict
    assert "bfloat16 head" not in [cause.code for cause in unlike.causes]


def test_a_float32_sum_over_a_vocabulary_is_noise_of_its_size():
    """Torch's own log_softmax, on what a policy at temperature 1 may have, against float64."""
    random = torch.Generator().manual_seed(0)
    for size in (49_152, 262_144):
        logits = 2.5 * torch.randn(16, size, generator=random) + 8
        exact = torch.log_softmax(logits.double(), -1)
        best = exact.argmax(-1, keepdim=True)
        lost = (torch.log_softmax(logits, -1).gather(1, best) - exact.gather(1, best)).abs().max()
        allowed = sum_noise(replace(make_run(Made(num_rollouts=1)), vocab_size=size))
        assert allowed / 30 < float(lost) < 4 * allowed


@pytest.mark.parametrize(("offset", "layer"), [(2e-5, "none"), (2e-3, "semantic")])
def test_an_offset_of_the_size_of_float32_sums_is_no_missing_mass(offset, layer):
    run = replace(run_under(Sampler(), Sampler(), lambda values: values + offset), vocab_size=262_144)
    verdict = judge(run).verdict
    assert verdict.layer == layer
    assert [cause.code for cause in verdict.causes] == ([] if layer == "none" else ["constant offset"])


def test_chances_of_large_runs_keep_their_digits():
    assert binomial_tail(3, 10, 0.2) == pytest.approx(0.3222004736)
    assert binomial_tail(0, 10, 0.2) == 1.0
    assert binomial_tail(2000, 100_000, 0.01) == pytest.approx(4.7e-173, rel=0.2)  # by the normal tail and 1 / n
    assert 0 < binomial_tail(60, 200, 0.01) < 1e-60


def test_the_trainer_in_the_engines_place_keeps_the_profile_and_has_a_head_of_its_own():
    run = run_under(NUCLEUS, NUCLEUS)
    nothing, second = np.full(run.token_id.size, np.nan), run.rollout % 2 == 1
    old = np.where(second, run.trainer.processed_logprob, np.nan)
    view = TrainerView("jsonl", old, *[nothing] * 6, second, np.where(second, run.rollout, -1), second, nothing)
    own = trainer_as_engine(replace(run, view=view, engine_dtype="bfloat16", head_dtype="bfloat16"))
    assert (own.engine_dtype, own.head_dtype) == ("float32", "float32")
    assert own.profile is not None and own.settings is not None
    assert own.profile.index.tolist() == list(range(int(second.sum())))
    kept = run.profile[second[run.profile.index]]
    assert (own.profile.own == kept.own).all() and own.settings.temperature.size == second.sum()


def test_a_trainer_whose_head_rounds_its_logits_is_told_from_an_engine_that_does():
    run = run_under(Sampler(), Sampler(low_head=True))
    nothing, every = np.full(run.token_id.size, np.nan), np.ones(run.token_id.size, bool)
    view = TrainerView("jsonl", run.rollout_logprob, *[nothing] * 6, every, run.rollout, every, nothing)
    verdict = judge(replace(run, rollout_logprob=run.trainer.processed_logprob, view=view)).verdict
    assert [cause.code for cause in verdict.causes] == ["trainer bfloat16 head"]
    assert verdict.party is not None and verdict.party.fault == "trainer"


def test_ids_that_the_tokenizer_does_not_have_are_named_with_the_first_of_them():
    run = run_under(NUCLEUS, NUCLEUS)
    size = int(np.quantile(run.token_id, 0.95))
    verdict = judge(run, facts=Facts(tokenizer_size=size)).verdict
    beyond = np.flatnonzero(run.token_id >= size)
    (found,) = verdict.causes
    assert (verdict.layer, found.code, found.numbers["count"]) == ("semantic", "ids beyond the tokenizer", beyond.size)
    assert verdict.since is not None and verdict.since.engine_step == run.engine_step[beyond].min()
    assert judge(run, facts=Facts(tokenizer_size=int(run.token_id.max()) + 1)).verdict.causes == []


@pytest.mark.parametrize("by", [1, -1])
def test_the_margin_over_other_transformations_does_not_depend_on_which_was_tried_first(by):
    verdict = judge(run_under(NUCLEUS, NUCLEUS, lambda values: np.roll(values, -by, axis=0))).verdict
    found = verdict.causes[0]
    assert found.code == "values of another row" and found.names[1] == ("next" if by > 0 else "previous")
    assert 0 < found.margin <= found.numbers["nats"]


def test_the_token_before_and_the_row_beside():
    run = make_run(Made(num_rollouts=3, length=4))
    values = np.arange(12.0)
    assert shifted(run, values, 1)[:5].tolist() == pytest.approx([np.nan, 0, 1, 2, np.nan], nan_ok=True)
    assert shifted(run, values, -1)[:5].tolist() == pytest.approx([1, 2, 3, np.nan, 5], nan_ok=True)
    assert other_row(values, rows_beside(run, 1)).tolist() == [4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3]
