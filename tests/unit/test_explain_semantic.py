"""What recorded values mean: a sampler written out by hand does not do what the request says, and is found out."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.world import Played, Sampler, World, play, run_of
from tracekit.diagnose.verdict import Verdict, judge
from tracekit.report.causes.table import sentence

WORLD = World(num_rollouts=12, length=24, vocab=300, seed=1)
NUCLEUS = Sampler(temperature=0.7, top_p=0.9)
WARM = Sampler(temperature=0.9)
ROUGH, FINE = 0.02, 1e-5  # logit noise of bfloat16 and of float32


def verdict_of(asked: Sampler, did: Sampler, *, eps: float, world: World = WORLD, **how) -> Verdict:
    played = play(world, did, eps=eps, **how)
    return judge(run_of(world, played, played.processed, asked.params(), eps=eps)).verdict


def edited(change, *, eps: float = ROUGH) -> Verdict:
    played = play(WORLD, NUCLEUS, eps=eps)
    return judge(run_of(WORLD, played, change(played), NUCLEUS.params(), eps=eps)).verdict


OTHER = {
    "temperature, hotter": (NUCLEUS, {"temperature": 0.8}),
    "temperature, a little": (NUCLEUS, {"temperature": 0.73}),
    "temperature, not applied": (Sampler(temperature=0.7), {"temperature": 1.0}),
    "temperature, not asked": (Sampler(), {"temperature": 0.8}),
    "top_p, wider": (NUCLEUS, {"top_p": 0.95}),
    "top_p, not asked": (Sampler(), {"top_p": 0.9}),
    "top_k, not asked": (WARM, {"top_k": 20}),
    "min_p, not asked": (WARM, {"min_p": 0.05}),
    "repetition_penalty, not asked": (WARM, {"repetition_penalty": 1.1}),
    "repetition_penalty, more": (Sampler(repetition_penalty=1.1), {"repetition_penalty": 1.3}),
    "frequency_penalty, not asked": (WARM, {"frequency_penalty": 0.5}),
    "presence_penalty, not asked": (WARM, {"presence_penalty": 0.5}),
}


_FINE = ("temperature, a little", "top_p, wider", "top_k, not asked", "repetition_penalty, more")


@pytest.mark.parametrize(("name", "eps"), [*((name, ROUGH) for name in OTHER), *((name, FINE) for name in _FINE)])
def test_another_value_than_recorded_is_fitted(name, eps):
    asked, change = OTHER[name]
    verdict = verdict_of(asked, replace(asked, **change), eps=eps)
    ((parameter, value),) = change.items()
    found = verdict.causes[0]
    assert (verdict.layer, found.code) == (
        "semantic",
        f"other {parameter}",
    ) or f"other {parameter}" in found.alternatives
    assert found.numbers["fitted"] == pytest.approx(value, rel=0.04)
    assert found.numbers["low"] <= found.numbers["fitted"] <= found.numbers["high"]
    assert found.numbers["recorded"] == getattr(asked, parameter)
    assert found.margin > 5 and found.share > 0.25
    assert found.numbers["d_abs_after"] < 0.75 * found.numbers["d_abs_before"]
    # a count has to begin before it is penalised
    assert verdict.since is not None and verdict.since.output_index <= (
        6 if "presence" in name or "frequency" in name else 4
    )


@pytest.mark.parametrize("eps", [ROUGH, FINE])
def test_two_values_at_once_are_both_named(eps):
    verdict = verdict_of(NUCLEUS, Sampler(temperature=0.9), eps=eps)
    fitted = {cause.code: cause.numbers["fitted"] for cause in verdict.causes}
    assert fitted["other temperature"] == pytest.approx(0.9, rel=0.03)
    assert fitted["other top_p"] == pytest.approx(1.0, abs=0.002)
    assert 0.5 < sum(cause.share for cause in verdict.causes) <= 1.0


def test_a_value_that_changes_under_way_is_dated():
    verdict = verdict_of(NUCLEUS, NUCLEUS, eps=ROUGH, later=replace(NUCLEUS, temperature=0.95), since=12)
    found = verdict.causes[0]
    assert found.code == "other temperature" and found.numbers["fitted"] == pytest.approx(0.95, rel=0.05)
    assert found.numbers["since_step"] == 12
    assert verdict.since is not None and verdict.since.output_index == 12


CLEAN = {
    "nothing": Sampler(),
    "nucleus": NUCLEUS,
    "warm": WARM,
    "top-k and min-p": Sampler(temperature=0.8, top_k=30, min_p=0.02),
    "penalties": Sampler(temperature=0.8, repetition_penalty=1.1, frequency_penalty=0.2),
    "cold": Sampler(temperature=0.3),
    "hot, many tokens beyond those that are kept one by one": Sampler(temperature=3.0),
}


@pytest.mark.parametrize(("eps", "seed"), [(ROUGH, 11), (ROUGH, 12), (FINE, 11)])
@pytest.mark.parametrize("name", CLEAN)
def test_a_clean_run_is_left_alone(name, eps, seed):
    sampler, world = CLEAN[name], replace(WORLD, seed=seed)
    played = play(world, sampler, eps=eps)
    for values, expect in ((played.processed, "processed"), (played.raw, "raw")):
        assert judge(run_of(world, played, values, sampler.params(), eps=eps), expect=expect).verdict.causes == []


def every(number: int, value: float):
    def change(played: Played) -> np.ndarray:
        values = played.processed.copy()
        values[:, number - 1 :: number] = value
        return values

    return change


@pytest.mark.parametrize("value", [0.0, -9999.0, -1e10, -100.0, 1.0])
def test_what_stands_for_a_missing_logprob_is_counted_and_named(value):
    verdict = edited(every(7, value))
    (found,) = (cause for cause in verdict.causes if cause.code == "sentinel values")
    assert verdict.layer == "semantic" and found.names == [f"{value:g}"]
    # a zero of a token that was certain is a logprob
    assert found.numbers["count"] == 12 * 3 if value else 3 < found.numbers["count"] < 36
    assert {"position", "request"} <= set(found.numbers)
    assert (verdict.since.output_index + 1) % 7 == 0


def shifted(played: Played) -> np.ndarray:
    values = played.processed.copy()
    values[:, 1:] = played.processed[:, :-1]
    return values


def two_before(played: Played) -> np.ndarray:
    values = played.processed.copy()
    values[:, 2:] = played.processed[:, :-2]
    return values


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (two_before, "shifted by one"),
        (lambda played: np.roll(played.processed, 2, axis=0), "values of another row"),
        (lambda played: np.maximum(played.processed, -2.3456), "sentinel values"),
    ],
)
def test_values_two_places_away_and_values_cut_off_are_told(change, code):
    verdict = edited(change)
    assert (verdict.layer, [cause.code for cause in verdict.causes]) == ("semantic", [code])
    assert "two" in sentence(verdict.causes[0], verdict) or code != "shifted by one"


def test_zeros_among_values_that_are_off_are_told_from_tokens_that_other_weights_are_sure_of():
    played = play(WORLD, WARM, eps=FINE)
    values = played.processed * np.exp(0.2 * np.random.default_rng(3).normal(size=played.processed.shape))
    for spoiled in (False, True):
        if spoiled:
            values[:, 4::5] = 0.0
        causes = judge(run_of(WORLD, played, values, WARM.params(), eps=FINE)).verdict.causes
        assert ("sentinel values" in [cause.code for cause in causes]) == spoiled


def test_a_mask_whose_ids_form_no_ranges_is_told_by_the_side_that_values_are_off_to():
    played = play(WORLD, WARM, eps=FINE)
    chance = np.exp(played.processed.astype(float))
    gone = np.random.default_rng(5).uniform(0.2, 0.8, chance.shape) * (1 - chance)

    def judged(sign: np.ndarray) -> Verdict:
        values = np.minimum(played.processed - np.log1p(-gone) * sign, 0.0)
        return judge(run_of(WORLD, played, values, WARM.params(), eps=FINE)).verdict

    verdict = judged(np.ones(gone.shape))
    assert (verdict.layer, [cause.code for cause in verdict.causes]) == ("semantic", ["hidden mask"])
    assert 0.05 < verdict.causes[0].numbers["missing_mass"] < 0.6
    assert "form no ranges" in sentence(verdict.causes[0], verdict)
    both = judged(np.where(np.arange(gone.size).reshape(gone.shape) % 20 == 0, -1, 1))
    assert "hidden mask" not in [cause.code for cause in both.causes]


TRANSFORMED = {
    "shifted by one": (shifted, {"by": -1.0}),
    "values of another row": (lambda played: np.roll(played.processed, -1, axis=0), {"by": 1.0}),
    "another unit": (lambda played: played.processed / np.log(2), {"factor": 1 / np.log(2)}),
    "constant offset": (lambda played: played.processed + 0.112, {"offset": -0.112, "missing_mass": 0.106}),
}


@pytest.mark.parametrize("eps", [ROUGH, FINE])
@pytest.mark.parametrize("code", TRANSFORMED)
def test_values_that_are_the_replays_in_another_place_unit_or_sum_are_said_to_be(code, eps):
    change, numbers = TRANSFORMED[code]
    verdict = edited(change, eps=eps)
    assert (verdict.layer, [cause.code for cause in verdict.causes]) == ("semantic", [code])
    for name, value in numbers.items():
        assert verdict.causes[0].numbers[name] == pytest.approx(value, abs=2e-3)
    assert verdict.causes[0].share > 0.8


def test_the_most_likely_tokens_value_is_not_the_sampled_ones():
    played = play(WORLD, NUCLEUS, eps=0.0)
    logits, values = WORLD.logits(), played.processed.copy()
    for i, t in np.ndindex(values.shape):
        values[i, t] = NUCLEUS.logprobs(logits[i, t], played.tokens[i, :t].tolist())[1].max()
    verdict = judge(run_of(WORLD, played, values, NUCLEUS.params(), eps=ROUGH)).verdict
    assert [cause.code for cause in verdict.causes] == ["most likely token's value"]
    # noise swaps two tokens that are about as likely
    assert verdict.causes[0].numbers["count"] == pytest.approx(np.count_nonzero(values != played.processed), abs=3)


@pytest.mark.parametrize("eps", [ROUGH, FINE])
def test_ids_that_a_hidden_mask_bars_are_named(eps):
    verdict = verdict_of(WARM, replace(WARM, barred=tuple(range(100, 160))), eps=eps)
    found = verdict.causes[0]
    assert (verdict.layer, found.code) == ("semantic", "hidden mask")
    first, last = (int(part) for part in found.names[0].split(" to "))
    assert abs(first - 100) <= 3 and abs(last - 159) <= 3
    assert 0.02 < found.numbers["missing_mass"] < 0.5


@pytest.mark.parametrize("temperature", [0.7, 0.8, 1.3])
def test_tokens_of_another_distribution_than_the_values_are_found_though_the_values_agree(temperature):
    world = replace(WORLD, num_rollouts=24)
    played = play(world, Sampler(temperature=temperature), eps=ROUGH)
    verdict = judge(run_of(world, played, played.raw, Sampler().params(), eps=ROUGH)).verdict
    found = verdict.causes[0]
    assert (verdict.layer, found.code) == ("semantic", "drawn otherwise")
    assert found.numbers["fitted"] == pytest.approx(temperature, rel=0.1)
    assert abs(verdict.before.d_mean) < 0.01


def test_a_nucleus_that_nobody_asked_for_is_found_in_the_choices_alone():
    world = replace(WORLD, num_rollouts=40)
    played = play(world, Sampler(top_p=0.9), eps=ROUGH)
    verdict = judge(run_of(world, played, played.raw, Sampler().params(), eps=ROUGH)).verdict
    assert [cause.code for cause in verdict.causes] == ["drawn otherwise"]


def test_a_bfloat16_head_is_named_where_the_trainers_is_float32():
    verdict = verdict_of(Sampler(), Sampler(low_head=True), eps=FINE)
    found = verdict.causes[0]
    assert (verdict.layer, found.code) == ("inference path", "bfloat16 head")
    assert found.margin > 100 and found.numbers["d_abs_after"] < 0.1 * found.numbers["d_abs_before"]


@pytest.mark.parametrize("size", [0.15, 0.5, 1.0])
def test_other_weights_are_not_taken_for_other_settings(size):
    played = play(WORLD, NUCLEUS, eps=size)  # logits that are another model's, a little
    verdict = judge(run_of(WORLD, played, played.processed, NUCLEUS.params(), eps=ROUGH)).verdict
    assert verdict.layer == "inference path"
    assert not [cause for cause in verdict.causes if cause.layer == "semantic"]
