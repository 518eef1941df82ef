"""One change point over all rollouts, and onsets against recorded events: found, dated, and quiet on clean runs."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.synthetic import Made, make_run, off_by
from tracekit.diagnose.data import OTHER_PRECISION, RolloutInfo, Run, Strata
from tracekit.diagnose.events import coincide, events_of
from tracekit.diagnose.pooled import LEAST, find_changes

LENGTH = 48


def make(num_rollouts, seed=0, waves=1, engines=1):
    """Residuals of t(6), wider or narrower from rollout to rollout; waves start one after the other."""
    rng = np.random.default_rng(seed)
    rollout = np.repeat(np.arange(num_rollouts), LENGTH)
    index = np.tile(np.arange(LENGTH), num_rollouts)
    n = rollout.size
    run = Run(
        rollouts=[RolloutInfo(i % engines, i, str(i), 5) for i in range(num_rollouts)],
        rollout=rollout,
        position=5 + index,
        token_id=index,
        rollout_logprob=-np.ones(n),
        weight_version=np.zeros(n, dtype=np.int64),
        engine_step=index + LENGTH * (rollout % waves),
        temperature=np.ones(n),
        kept_mass=np.ones(n),
        rank=np.zeros(n, dtype=np.int64),
        scores={},
    )
    return run, rng.standard_t(6, n) * np.exp(0.2 * rng.standard_normal(num_rollouts))[rollout]


def changes(run, z):
    return {(change.axis, change.engine): change for change in find_changes(run, z, np.ones(z.size, dtype=bool))}


@pytest.mark.parametrize("waves", [1, 3])
def test_clean_runs_show_a_change_no_more_often_than_is_said(waves):
    chances = [min(c.chance for c in changes(*make(24, seed, waves)).values()) for seed in range(40)]
    assert np.mean(np.array(chances) < 0.05) <= 0.15 and min(chances) > 0.001


def test_a_change_that_no_rollout_shows_is_found_by_engine_step_where_rollouts_begin_at_different_ones():
    run, z = make(64, waves=3)
    z[run.engine_step >= 70] *= 1.4
    found = changes(run, z)["engine_step", 0]
    assert found.chance < 0.005 and found.rises
    assert abs(found.at - 70) <= 4 and found.first <= 70 <= found.last
    assert found.median_after > 1.2 * found.median_before


def test_a_change_by_output_index_is_told_and_an_end_is_no_begin():
    run, z = make(64, waves=3)
    z[run.output_index < 20] *= 1.5
    found = changes(run, z)["output_index", None]
    assert found.chance < 0.005 and not found.rises and abs(found.at - 20) <= 3


def test_each_engine_has_steps_of_its_own():
    run, z = make(64, engines=2)
    z[(run.engine == 1) & (run.engine_step >= 20)] *= 1.8
    found = changes(run, z)
    assert found["engine_step", 1].chance < 0.005 < 0.05 < found["engine_step", 0].chance


def test_strata_are_not_compared_with_each_other():
    """Tokens over cached blocks are noisier, and all of them come later: that is no change of the run."""
    run, z = make(32, waves=2)
    none = np.full(z.size, -1)
    cached = run.engine_step >= LENGTH
    z[cached] *= 3.0
    strata = Strata(np.where(cached, 16, 0), none, none, none, np.zeros(z.size, dtype=np.int64), none)
    assert changes(run, z)["engine_step", 0].chance < 0.005
    assert changes(replace(run, strata=strata), z)["engine_step", 0].chance > 0.05


def test_over_many_rollouts_the_smallest_change_is_no_chance_and_no_finding():
    run, z = make(2000)
    z[run.output_index >= 24] *= 1.1
    assert changes(run, z)["output_index", None].chance == 1.0
    z[run.output_index >= 24] *= 1.3
    assert changes(run, z)["output_index", None].chance < 0.005


def test_few_rollouts_say_nothing_and_the_same_run_says_the_same():
    assert not find_changes(*make(LEAST - 1), np.ones((LEAST - 1) * LENGTH, dtype=bool))
    run, z = make(16)
    assert find_changes(run, z, z > -9) == find_changes(run, z, z > -9)


def with_events(num_rollouts=16):
    run, _ = make(num_rollouts)
    version = (run.output_index >= 8 + run.rollout).astype(np.int64)
    nothing = np.zeros(run.rollout.size, dtype=np.int64)
    batch = np.where(run.output_index < 30, 16, 12)
    return replace(run, weight_version=version, strata=Strata(nothing, nothing, nothing, batch, nothing, nothing))


def test_onsets_that_fall_on_a_weight_change_are_told_from_chance():
    run = with_events()
    onsets = np.flatnonzero(events_of(run)["weight change"])
    onsets[3] += 1  # what happens at a token may show a little later
    (first, *_) = coincide(run, onsets, events_of(run, 16))
    assert (first.kind, first.num_coincide, first.num_onsets) == ("weight change", 16, 16)
    assert first.expected == pytest.approx(16 * 2 / LENGTH) and first.chance < 1e-10


def test_onsets_anywhere_coincide_with_nothing_beyond_chance():
    run = with_events()
    rng = np.random.default_rng(1)
    for _ in range(20):
        onsets = np.arange(16) * LENGTH + rng.integers(0, LENGTH, 16)
        assert all(found.chance > 0.01 for found in coincide(run, onsets, events_of(run, 16)))


def test_what_counts_as_an_event():
    run = with_events()
    events = events_of(run, 16)
    assert events.keys() == {"weight change", "block edge", "batch change"}
    assert np.array_equal(np.flatnonzero(events["block edge"]) % LENGTH, np.tile([11, 27, 43], 16))
    assert np.array_equal(np.flatnonzero(events["batch change"]) % LENGTH, np.full(16, 30))
    strata = run.strata
    none = np.zeros(run.rollout.size, dtype=np.int64)
    more = {"num_drafts": none + (run.output_index == 3), "num_chunks": none + 1 + (run.rollout == 1)}
    more["adapters"] = none + (run.output_index >= 7)
    events = events_of(replace(run, strata=replace(strata, **more)))
    assert np.flatnonzero(events["verified drafts"]).tolist() == (np.arange(16) * LENGTH + 3).tolist()
    assert np.flatnonzero(events["first token of a prompt in chunks"]).tolist() == [LENGTH]
    assert np.flatnonzero(events["adapter change"]).tolist() == (np.arange(16) * LENGTH + 7).tolist()
    cached = replace(run, strata=replace(strata, num_cached=np.where(run.rollout < 2, 16, 0)))
    assert np.flatnonzero(events_of(cached)["first token after cached blocks"]).tolist() == [0, LENGTH]


@pytest.mark.parametrize("control_grows", [True, False])
def test_noise_that_grows_with_the_context_is_clean_where_the_control_shows_the_same(control_grows: bool) -> None:
    run = make_run(Made(num_rollouts=24, length=96, temperature=1.0, top_p=1.0))
    random, growth = np.random.default_rng(0), (run.position / 50) ** 0.6
    size = 0.02 * run.trainer.raw_noise_gain
    away = size * random.standard_normal(size.size) * (growth if control_grows else 1.0)
    run = replace(run, scores={**run.scores, OTHER_PRECISION: off_by(run.trainer, away)})
    z = random.standard_normal(size.size) * growth
    changes = find_changes(run, z, np.ones(size.size, dtype=bool))
    (change,) = (change for change in changes if change.axis == "output_index")
    assert (change.chance > 0.02) == control_grows and (change.chance < 1e-3) != control_grows
