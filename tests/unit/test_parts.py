"""Parts of recorded − replayed that telescope, and the state that a re-run of the engine proves."""

from dataclasses import replace

import numpy as np
import pytest

from helpers.synthetic import Made, make_run
from tracekit.diagnose.data import KV_RECOMPUTED, TRAINER, Strata
from tracekit.diagnose.parts import split, token_parts
from tracekit.diagnose.reran import ALONE, COMPOSED, PREFILLED, UNCACHED, Reran, RerunOf
from tracekit.diagnose.verdict import judge
from tracekit.replay.output import token_table
from tracekit.report.causes.table import proof, sentence
from tracekit.report.parts import parts_lines

ENGINE = RerunOf(0, "0.18.1", 16, 48, 768, 12.0, 0)


def again(run, engine=ENGINE, **values):
    """The run with a re-run that repeats what was recorded but for `values`."""
    made = {COMPOSED: run.rollout_logprob.copy(), **values}
    return replace(run, reran=Reran([engine], made), dtype="bfloat16", noise_dtype="float32", engine_dtype="bfloat16")


@pytest.fixture(scope="module")
def run():
    return make_run(Made(recorded="raw", declared="raw_logprobs"))


def test_the_parts_of_each_token_add_up_whatever_was_not_run(run):
    rng = np.random.default_rng(3)
    size = run.rollout_logprob.size
    gaps = [np.where(rng.random(size) < 0.5, np.nan, run.rollout_logprob + rng.standard_normal(size)) for _ in range(2)]
    run = again(run, **{ALONE: gaps[0], PREFILLED: gaps[1]})
    parts = token_parts(run, "raw")
    last = run.scores["noise.precision"].raw_logprob
    assert list(parts) == ["state", "batch", "decoding", "kernels", "precision"]
    total = np.nansum(np.stack(list(parts.values())), axis=0)
    assert np.allclose(total, run.rollout_logprob - last, rtol=0, atol=1e-12)
    # without a rung, the next has its share
    assert np.array_equal(np.isnan(parts["batch"]), np.isnan(gaps[0])) and not np.isnan(parts["kernels"]).any()
    alone = np.isnan(gaps[1]) & ~np.isnan(gaps[0])
    assert np.array_equal(parts["kernels"][alone], (gaps[0] - run.scores[TRAINER].raw_logprob)[alone])


def test_what_an_uncached_re_run_computes_anew_the_scorer_does_too(run):
    size = run.rollout_logprob.size
    fresh, own = np.full(size, np.nan), run.rollout == 2
    fresh[own] = run.scores[TRAINER].raw_logprob[own] + 0.5
    scores = {**run.scores, KV_RECOMPUTED: run.scores[TRAINER].each(lambda values: values)}
    scores[KV_RECOMPUTED] = replace(scores[KV_RECOMPUTED], raw_logprob=fresh)
    zeros = np.zeros(size, dtype=np.int64)
    older = np.where(run.rollout <= 3, 0, -1)
    strata = Strata(zeros + 32, older, older, zeros + 4, zeros, zeros)
    found = np.where((run.rollout >= 2) & (run.rollout <= 4), run.rollout_logprob + 0.5, np.nan)
    run = replace(again(run, **{UNCACHED: found}), scores=scores, strata=strata, weight_version=zeros + 1)
    parts = token_parts(run, "raw")
    # of rollout 3, too, but nobody scored it over KV computed anew
    assert {*run.rollout[np.isfinite(parts["caching"])]} == {2, 4}
    assert np.array_equal(parts["kernels"][own], (found - fresh)[own]) and np.isnan(parts["precision"][own]).all()
    assert np.abs(parts["caching"][own] + 0.5).max() < 1e-12 and np.isfinite(parts["precision"][~own]).all()


def test_an_engine_in_float32_has_no_precision_beyond_it(run):
    run = replace(again(run), engine_dtype="float32")
    found = split(run, "raw")
    assert [part.name for part in found.parts] == ["state", "kernels"] and found.scorer_dtype == "float32"
    assert found.parts[0].num_nonzero == 0 and found.residual_max < 1e-12


def test_state_is_named_at_its_first_token_and_with_what_happened_there(run):
    values = run.rollout_logprob.copy()
    own = np.flatnonzero(run.rollout == 3)
    values[own[7:]] += 0.001
    values[np.flatnonzero(run.rollout == 5)[9]] -= 0.5
    preempted = np.zeros(values.size, dtype=np.int64)
    preempted[own[7:]] = 1
    zeros = np.zeros(values.size, dtype=np.int64)
    strata = Strata(zeros, zeros - 1, zeros - 1, zeros + 4, zeros, preempted)
    verdict = judge(replace(again(run, **{COMPOSED: values}), strata=strata), expect="raw").verdict
    (found,) = (cause for cause in verdict.causes if cause.code == "state")
    assert verdict.layer == "inference path" and verdict.cause == "state"
    assert (found.rollouts, found.since.output_index, found.since_rollout) == ([3, 5], 7, 3)
    assert found.names == ["preemption"] and found.numbers["count"] == 42 and found.numbers["preemption"] == 1
    assert "2 of 16 rollouts are not repeated" in sentence(found, verdict)
    assert "first at output token 7, right after a preemption" in sentence(found, verdict)
    assert proof(found) == "proved without numerics"


@pytest.mark.parametrize("other", [{"unlike": ["torch: 2.9 recorded, 2.10 here"]}, {"num_moved": 1}])
def test_another_engine_than_the_recorded_one_proves_nothing(run, other):
    off = run.rollout_logprob + 1e-3
    verdict = judge(again(run, replace(ENGINE, **other), **{COMPOSED: off}), expect="raw").verdict
    assert verdict.layer == "none" and verdict.parts.parts[0].num_nonzero == off.size
    assert any(line.startswith("recorded − re-run: that, or state") for line in parts_lines(verdict.parts))


def test_what_cannot_be_forced_is_said_and_the_scorers_parts_stand_alone(run):
    refused = RerunOf(0, "0.18.1", 0, 0, 0, 0.0, 0, {COMPOSED: "speculative decoding cannot be forced"})
    run = replace(again(run), reran=Reran([refused], {}))
    judged = judge(run, expect="raw")
    assert [part.name for part in judged.verdict.parts.parts] == ["kernels", "precision"]
    lines = list(parts_lines(judged.verdict.parts))
    assert lines[0] == (
        "engine 0 was not run again: speculative decoding cannot be forced; the scorer's parts stand alone"
    )
    table = token_table(run, judged.tokens, judged.verdict.parts)
    assert [name for name in table.column_names if "part_" in name] == ["part_kernels", "part_precision"]


def test_a_clean_re_run_is_shown_and_names_nothing(run):
    verdict = judge(again(run), expect="raw").verdict
    assert verdict.layer == "none" and verdict.causes == []
    stopped = replace(ENGINE, stopped={COMPOSED: "engine step 7 is composed otherwise: of request 2 no token"})
    lines = list(parts_lines(replace(verdict.parts, engines=[stopped])))
    assert lines[0] == "engine 0 ran again in vLLM 0.18.1: 48 steps of 16 requests as recorded, 768 tokens in all; 12 s"
    assert "as recorded it could not be played to its end: engine step 7 is composed otherwise" in lines[1]
    assert lines[3].startswith("recorded − re-run: state") and lines[3].split()[-1] == "0"
    assert list(parts_lines(None)) == []
