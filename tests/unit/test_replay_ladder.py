"""The ladder: which passes a run gets, what each changes, and that what it stands for has a name."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.synthetic import Made, make_run, score
from tracekit.diagnose.data import (
    ACCUSED,
    KV_KEPT,
    KV_RECOMPUTED,
    MASTERS,
    NARROW_HEAD,
    OTHER_PRECISION,
    OTHER_SHAPE,
    PROFILE,
    ROUNDED_SAMPLING,
    TRAINER,
    WEIGHTS_AFTER,
    WEIGHTS_BEFORE,
)
from tracekit.diagnose.explain import head
from tracekit.diagnose.explanation import Explanation
from tracekit.diagnose.readings import READINGS
from tracekit.diagnose.verdict import judge
from tracekit.replay.ladder import LADDER, Scene, parameters_in_use, plan_further, rounded
from tracekit.replay.ladder import plan_passes as plan_of
from tracekit.replay.scorers import Model
from tracekit.scoring.params import Params

NUCLEUS = Params(temperature=0.7, top_p=0.9)


def plan_passes(dtype, all_params, **scene):
    return plan_of(Model(dtype, dtype), 512, Scene(parameters_in_use(all_params), **scene))


def names(*all_params, **scene):
    return [how.name for how in plan_passes("bfloat16", all_params, **scene)]


def test_every_run_has_the_trainers_pass_first_a_profile_and_two_that_measure_noise():
    trainer, profile, shape, precision = plan_passes("bfloat16", [Params()])
    assert (trainer.name, trainer.model.dtype, trainer.max_batch_tokens) == (TRAINER, "bfloat16", 512)
    assert trainer.num_tokens is None and trainer.cost is None and trainer.share
    # a look at the same logits: it takes the trainer's forward along
    assert (profile.name, profile.forward, profile.profile) == (PROFILE, trainer.forward, True)
    # each rollout alone, its prompt run for it alone
    assert (shape.name, shape.model, shape.max_batch_tokens, shape.share) == (OTHER_SHAPE, trainer.model, 1, False)
    # the weights are what they were before: another precision of the body is no other cast of what is stored
    assert (precision.name, precision.model) == (OTHER_PRECISION, Model("float32", "bfloat16"))
    assert precision.max_batch_tokens == 512


def test_noise_is_measured_on_the_side_that_computes_more_coarsely():
    def control(trainer, engine):
        plan = plan_of(Model(trainer, engine), 512, Scene(set()))
        return next(how.model for how in plan if how.name == OTHER_PRECISION)

    assert control("bfloat16", "float32") == Model("float32", "float32")
    assert control("float32", "bfloat16") == Model("bfloat16", "bfloat16")
    assert control("float16", "bfloat16") == Model("bfloat16", "bfloat16")
    assert control("float32", "float32") == Model("float32", "float32", in_halves=True)


def test_other_histories_of_the_kv_and_the_masters_are_scored_where_a_run_has_them():
    assert {KV_RECOMPUTED, KV_KEPT, MASTERS}.isdisjoint(names(Params()))
    assert {KV_RECOMPUTED, KV_KEPT} < set(names(Params(), mixed=True))
    (masters,) = (how for how in plan_passes("bfloat16", [Params()], masters=True) if how.name == MASTERS)
    assert masters.model == Model("float32", None)


def test_a_reading_is_scored_only_where_it_differs_from_raw_and_processed():
    others = {TRAINER, PROFILE, OTHER_SHAPE, OTHER_PRECISION}
    assert set(names(Params(top_k=5))) == others  # without truncation it would be raw
    assert set(names(Params(top_k=5), Params(min_p=0.1))) == others
    assert {"sampling.no_temperature", "sampling.no_truncation"} <= set(names(NUCLEUS))
    assert "sampling.no_penalties" not in names(NUCLEUS)
    assert "sampling.no_penalties" in names(NUCLEUS, Params(logit_bias=((3, 1.0),)))


def test_what_each_reading_makes_of_the_parameters():
    full = replace(NUCLEUS, top_k=7, min_p=0.1, repetition_penalty=1.2, logit_bias=((3, 1.0),), min_tokens=2)
    read = {how.name: how.sampling(full) for how in plan_passes("bfloat16", [full])}
    assert read[TRAINER] == full
    assert read["sampling.no_temperature"] == replace(full, temperature=1.0)
    assert read["sampling.temperature_twice"] == replace(full, temperature=pytest.approx(0.49))
    assert names(Params(temperature=0.7)) == [
        TRAINER,
        PROFILE,
        OTHER_SHAPE,
        "sampling.temperature_twice",
        OTHER_PRECISION,
    ]
    assert read["sampling.no_truncation"] == replace(full, top_p=1.0, top_k=0, min_p=0.0)
    assert read["sampling.no_penalties"] == replace(full, repetition_penalty=1.0, logit_bias=())


def test_every_reading_has_a_name_and_every_name_a_pass():
    readings = {rung.name for rung in LADDER if rung.name.startswith("sampling.")}
    assert {reading.scores for reading in READINGS} == {TRAINER, *readings}
    assert len({rung.name for rung in LADDER}) == len(LADDER)
    assert len({reading.name for reading in READINGS}) == len(READINGS)


@pytest.mark.parametrize("reading", [r for r in READINGS if r.scores != TRAINER], ids=lambda r: r.name)
def test_a_reading_whose_pass_gives_the_recorded_values_is_named(reading):
    """The engine recorded what the pass gives, with its own noise: semantic, under that name."""
    run = make_run(Made())
    rng = np.random.default_rng(3)
    logits = rng.standard_normal((run.token_id.size, 160)) * 4
    rows = np.arange(run.token_id.size)
    token = logits.argmax(axis=1)
    other = score(logits, token, 0.5, 0.99)
    recorded = other.forced_logprob + 1e-4 * other.processed_noise_gain * rng.standard_normal(rows.size)
    planted = replace(run, rollout_logprob=recorded, scores={**run.scores, reading.scores: other})
    verdict = judge(planted).verdict
    assert (verdict.layer, verdict.semantic.kind) == ("semantic", reading.name)
    assert verdict.semantic.margin > 100


def test_other_weights_are_scored_only_where_a_first_look_shows_something_on_the_path():
    trainer = plan_passes("bfloat16", [Params()])[0]
    scene = Scene(set(), before=((1, 0),), after=((0, 1),))
    assert plan_further(trainer, scene, judge(make_run(Made())).verdict) == []
    assert plan_further(trainer, scene, judge(make_run(Made(recorded="raw"))).verdict) == []
    verdict = judge(make_run(Made(shift=0.8, shift_rollouts=3))).verdict
    _, before, after = plan_further(trainer, scene, verdict)
    assert (before.name, before.instead, after.name, after.instead) == (
        WEIGHTS_BEFORE,
        ((1, 0),),
        WEIGHTS_AFTER,
        ((0, 1),),
    )
    assert before.only == after.only == (0, 1, 2) and before.cost == 0.15
    assert len({trainer.forward, before.forward, after.forward}) == 3
    assert [how.name for how in plan_further(trainer, Scene(set()), verdict)] == [ACCUSED]  # there are no other weights


def test_rollouts_that_are_accused_are_scored_in_the_other_precision_unless_the_whole_run_is_off():
    trainer = plan_passes("bfloat16", [Params()])[0]
    accused = judge(make_run(Made(shift=0.8, shift_rollouts=3))).verdict
    (asked,) = plan_further(trainer, Scene(set()), accused)
    assert (asked.name, asked.only, asked.model.dtype, asked.cost) == (ACCUSED, (0, 1, 2), "float32", 0.45)
    assert plan_further(trainer, Scene(set()), judge(make_run(Made(shift=0.8))).verdict) == []
    assert plan_further(trainer, Scene(set()), judge(make_run(Made())).verdict) == []


def test_a_narrow_head_and_rounded_parameters_are_scored_where_they_may_explain_something():
    run = make_run(Made(shift=0.6))
    trainer, scene = plan_passes("float32", [NUCLEUS])[0], Scene({"temperature", "truncation"}, rounds=True)
    (asked,) = plan_further(trainer, scene, judge(run).verdict)
    assert asked.name == ROUNDED_SAMPLING
    assert asked.sampling(NUCLEUS) == Params(temperature=0.69921875, top_p=0.8984375) == rounded(NUCLEUS)
    assert plan_further(trainer, replace(scene, rounds=False), judge(run).verdict) == []
    assert plan_further(trainer, scene, judge(make_run(Made())).verdict) == []
    suspected = Explanation(head.CODE, "inference path", margin=30.0, share=0.2)
    (asked, _) = plan_further(trainer, scene, replace(judge(run).verdict, causes=[suspected]))
    assert (asked.name, asked.model) == (NARROW_HEAD, Model("float32", "float32", head="bfloat16"))
