"""What the rollouts that diverge have in common is named, and where chance would do it nothing is."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.synthetic import Made, edit, make_run, off_by
from tracekit.diagnose.data import KV_BORROWED, KV_RECOMPUTED, RolloutInfo, Strata
from tracekit.diagnose.facts import Facts, Noted, WeightChange
from tracekit.diagnose.verdict import judge
from tracekit.report.causes.table import change, proof, sentence

FAULTY = 5  # of 16 rollouts


def strata(run, **columns):
    """Of a run in which nothing happened, but for these columns, one value for each rollout."""
    size = run.token_id.size
    made = {name: np.zeros(size, dtype=np.int64) for name in Strata.__dataclass_fields__}
    made["oldest_found"] = made["newest_found"] = np.full(size, -1)
    return Strata(**{**made, **{name: np.asarray(values)[run.rollout] for name, values in columns.items()}})


def of_faulty(value, other=0):
    return np.where(np.arange(16) < FAULTY, value, other)


@pytest.fixture(scope="module")
def faulty():
    return make_run(Made(shift=0.8, shift_rollouts=FAULTY))


def only(run, facts=None):
    (found,) = judge(run, facts=facts).verdict.causes
    return found


def test_the_cached_requests_are_named_with_what_doctor_knew(faulty):
    run = replace(faulty, strata=strata(faulty, num_cached=of_faulty(16)))
    noted = Noted("doctor", "hit-unexplained", "misleads", 0, 5, "16 tokens cached that nobody computed", "…")
    found = only(run, Facts(noted=[noted, replace(noted, id="other")]))
    assert (found.code, found.layer, found.rollouts) == ("cached requests", "inference path", [0, 1, 2, 3, 4])
    assert found.numbers == {"having": 5, "hit": 5, "outside": 0} and found.share > 0.8 and found.margin > 5
    assert found.cited == ["doctor: hit-unexplained"]
    verdict = judge(run).verdict
    assert verdict.cause == "cached requests" and verdict.since == found.since
    said = sentence(found, verdict)
    assert "those with a prefix-cache hit: 5 of 5 leave it, of all others 0; why is not known" in said
    assert "enable_prefix_caching=False" in change(found, verdict)
    assert "as found by doctor: hit-unexplained" in proof(found)


def test_the_engine_is_named_and_circumstances_that_cannot_be_told_apart_stand_together(faulty):
    engines = [RolloutInfo(int(e), i, f"r-{i}", 5) for i, e in enumerate(of_faulty(1))]
    run = replace(faulty, rollouts=engines, strata=strata(faulty, num_preempted=of_faulty(2)))
    found = only(run)
    assert {found.code, *found.alternatives} == {"one engine", "preempted requests"}
    assert only(replace(run, strata=None)).names == ["1"]


def test_one_weight_version_is_named(faulty):
    found = only(replace(faulty, weight_version=of_faulty(3, 2)[faulty.rollout]))
    assert (found.code, found.names) == ("one weight version", ["3"])


def test_what_chance_would_do_is_not_named(faulty):
    every_third = np.arange(16) % 3 == 0
    run = replace(faulty, strata=strata(faulty, num_cached=every_third * 16))
    assert judge(run).verdict.causes == []
    all_of_them = make_run(Made(shift=0.8))
    assert judge(replace(all_of_them, strata=strata(all_of_them, num_cached=of_faulty(16)))).verdict.causes == []


def test_clean_runs_and_semantic_mismatches_have_no_where():
    clean = make_run(Made())
    assert judge(replace(clean, strata=strata(clean, num_cached=of_faulty(16)))).verdict.causes == []
    raw = make_run(Made(recorded="raw"))
    codes = [e.code for e in judge(replace(raw, strata=strata(raw, num_cached=of_faulty(16)))).verdict.causes]
    assert codes == ["other reading"]


def grown(run, power):
    """Values that leave their replay more the later they are."""
    rng = np.random.default_rng(2)
    free = run.trainer.processed_noise_gain > 0.05
    size = 1.5 * ((run.position + 1) / (run.position.max() + 1)) ** power * free
    return edit(run, lambda values: np.minimum(values + size * rng.standard_normal(values.size), -1e-3))


def test_a_difference_that_grows_with_the_position_is_told_from_one_that_begins_somewhere():
    found = only(grown(make_run(Made(length=96)), 2))
    assert found.code == "grows with position" and found.numbers["growth"] > 2 and found.margin > 5
    assert "rope_parameters" in change(found, judge(make_run(Made())).verdict)
    for other in (Made(shift=0.8, length=96), Made(shift=0.8, length=96, shift_from=48)):
        assert not [e for e in judge(make_run(other)).verdict.causes if e.code == "grows with position"]


def test_requests_that_began_on_blocks_of_older_weights_are_stale_and_a_trainer_is_off_by_as_much():
    run = make_run(Made())
    away = np.random.default_rng(4).normal(0, 0.5, run.token_id.size) * (run.rollout < FAULTY)
    anew = off_by(run.trainer, away)
    run = replace(
        run,
        weight_version=np.full(run.token_id.size, 2),
        scores={**run.scores, KV_RECOMPUTED: anew},
        strata=strata(run, num_cached=of_faulty(4), oldest_found=of_faulty(1, -1), newest_found=of_faulty(1, -1)),
    )
    changes = [WeightChange(0, version, 10 * version, "load_weights", moved) for version, moved in ((1, 4), (2, 4))]
    verdict = judge(run, facts=Facts(changes=changes)).verdict
    (found,) = verdict.causes
    assert (found.code, verdict.layer) == ("stale prefix blocks", "inference path")
    assert found.rollouts == list(range(FAULTY)) and found.names == ["2 over KV of 1"] and found.share > 0.5
    assert found.numbers["d_abs"] > 5 * found.numbers["d_abs_over_old"]
    assert verdict.since == found.since and found.since.weight_version == 2
    assert "5 rollouts began on prefix-cache blocks that older weights computed" in sentence(found, verdict)
    # a change that moved nothing makes nothing stale, and neither does KV that a rollout brought along itself
    nothing = [changes[0], replace(changes[1], num_changed=0)]
    assert judge(run, facts=Facts(changes=nothing)).verdict.causes == []
    own = replace(run, weight_version=np.where(run.output_index < 9, 1, 2))
    assert judge(own, facts=Facts(changes=changes)).verdict.causes == []


def test_what_says_why_comes_before_what_says_where_however_little_it_explains(faulty):
    """Stale blocks beside another fault of the same rollouts: the version that has both is no cause of either."""
    farther = np.sign(faulty.trainer.processed_logprob - faulty.rollout_logprob) * (faulty.rollout < FAULTY) * 0.1
    run = replace(
        faulty,
        weight_version=of_faulty(2, 1)[faulty.rollout],
        scores={**faulty.scores, KV_RECOMPUTED: off_by(faulty.trainer, farther)},
        strata=strata(faulty, num_cached=of_faulty(4), oldest_found=of_faulty(1, -1), newest_found=of_faulty(1, -1)),
    )
    changes = [WeightChange(0, version, 10 * version, "load_weights", 4) for version in (1, 2)]
    why, where = judge(run, facts=Facts(changes=changes)).verdict.causes
    assert why.code == "stale prefix blocks" and where.code in ("one weight version", "cached requests")
    assert why.share < 0.5 < where.share


def off(run, where, size=0.8):
    """Values of some tokens that leave their replay."""
    rng = np.random.default_rng(3)
    moved = where & (run.trainer.processed_noise_gain > 0.05)
    return edit(run, lambda values: np.minimum(values + moved * size * rng.standard_normal(values.size), -1e-3))


def of_tokens(run, **columns):
    return replace(strata(run), **columns)


def test_tokens_of_certain_batch_sizes_are_named_and_a_change_in_time_is_not_one():
    run = make_run(Made(length=64))
    sizes = np.where((run.engine_step // 8) % 2, 12, 4)  # they come and go
    with_sizes = of_tokens(run, batch_size=sizes)
    found = only(replace(off(run, sizes > 4), strata=with_sizes))
    assert (found.code, found.names) == ("certain batch sizes", ["of 12 or more"]) and found.share > 0.4
    assert found.since.engine_step in range(8, 16)
    assert "in batches of 12 or more" in sentence(found, judge(run).verdict)
    found = only(replace(off(run, sizes < 12), strata=with_sizes))
    assert found.names == ["of less than 12"]
    assert judge(replace(off(run, run.engine_step >= 21), strata=with_sizes)).verdict.causes == []
    assert judge(replace(run, strata=with_sizes)).verdict.causes == []


def test_tokens_of_decode_steps_are_named():
    run = make_run(Made(length=24, num_rollouts=32))
    began = of_tokens(run, prefill=(run.output_index == 0).astype(np.int64), batch_size=np.full(run.token_id.size, 8))
    found = only(replace(off(run, run.output_index > 0, 4.0), strata=began))
    assert found.code == "decode steps" and found.since.output_index <= 2
    assert judge(replace(off(run, run.output_index > 4, 4.0), strata=began)).verdict.causes == []


def test_an_edge_in_the_position_is_told_from_one_in_time():
    run = make_run(Made(length=48))
    lengths = 5 + 7 * (np.arange(16) % 4)
    infos = [replace(info, num_prompt_tokens=int(n)) for info, n in zip(run.rollouts, lengths, strict=True)]
    run = replace(run, rollouts=infos, position=run.position - 5 + lengths[run.rollout])
    found = only(off(run, run.position >= 40))
    assert found.code == "from a position on" and abs(int(found.names[0]) - 40) <= 2
    assert judge(off(run, run.output_index >= 24)).verdict.causes == []


def test_blocks_of_another_prompt_are_named_where_its_tokens_explain_the_values():
    clean = make_run(Made())
    away = np.random.default_rng(4).normal(0, 0.5, clean.token_id.size) * (clean.rollout < FAULTY)
    own = off_by(clean.trainer, away)
    behind = clean.trainer.each(np.copy)
    behind.forced_logprob[clean.rollout >= FAULTY] = np.nan
    run = replace(clean, scores={**clean.scores, "trainer": own, KV_BORROWED: behind})
    (found,) = judge(run).verdict.causes
    assert found.code == "foreign blocks" and found.rollouts == list(range(FAULTY)) and found.share > 0.8
    assert "no request of the same tokens" in sentence(found, judge(run).verdict)
    assert judge(replace(clean, scores={**clean.scores, KV_BORROWED: clean.trainer})).verdict.causes == []
