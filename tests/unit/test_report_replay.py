"""The screen and the JSON of a replay, rendered from seeded verdicts without opening anything."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from helpers.synthetic import Made, edit, make_run
from tracekit.diagnose.causes import CAUSES
from tracekit.diagnose.data import Layer
from tracekit.diagnose.explanation import Code as CauseCode
from tracekit.diagnose.explanation import Explanation
from tracekit.diagnose.facts import Facts, Noted
from tracekit.diagnose.noise import measure_noise
from tracekit.diagnose.onset import Onset
from tracekit.diagnose.plain import plain
from tracekit.diagnose.remarks import Code, Remark
from tracekit.diagnose.result import Data, Result, Scoring, Weights
from tracekit.diagnose.skipped import REASONS, Skipped, Why
from tracekit.diagnose.verdict import OnPath, judge
from tracekit.diagnose.withheld import withheld
from tracekit.report import words
from tracekit.report.causes.table import SAYINGS, change, proof, sentence
from tracekit.report.json import to_json
from tracekit.report.text import to_text

SCORING = Scoring(
    "tiny", "bfloat16", "float32", "cpu", "packed", "bfloat16", 2.5, 4096, 61.0, 3 << 30, [Weights(0, "/tiny", "given")]
)
DATA = Data(16, 768, 0, 0, [], None, False)


def result_of(run, *, expect="processed", data=DATA, scoring=SCORING):
    verdict = judge(run, expect=expect, facts=Facts(skipped=data.skipped_requests)).verdict
    return Result.of("0.1.0", scoring, data, verdict)


def screen(run, **changes):
    return to_text(result_of(run, **changes))


def test_the_verdict_comes_first_in_words():
    text = screen(make_run(Made(recorded="raw")))
    first, second = text.splitlines()[:2]
    assert first.startswith("VERDICT: semantic mismatch, since output token 0 of request ")
    assert "recorded raw logprobs and the trainer expects processed" in second


def test_both_columns_are_there_where_the_semantic_is_wrong():
    text = screen(make_run(Made(recorded="raw")))
    assert "against processed" in text and "against raw" in text
    assert "clip rate, epsilon 0.2" in text


def test_the_memory_of_workers_is_told_where_there_were_any():
    run = make_run(Made())
    assert "61 s, peak memory 3.0 GiB\n" in screen(run)
    with_workers = screen(run, scoring=replace(SCORING, worker_peak_bytes=5 << 29))
    assert "peak memory 3.0 GiB, of a worker at most 2.5 GiB\n" in with_workers


def test_a_clean_screen_has_one_column_and_no_rows_of_tokens():
    text = screen(make_run(Made()))
    assert text.startswith("VERDICT: no divergence")
    assert "against processed" in text and "against raw" not in text
    assert "0 of 16 rollouts leave their replay beyond noise" in text
    assert "values at the earlier:" not in text


def test_at_most_eight_rollouts_are_listed_and_the_rest_counted():
    text = screen(make_run(Made(shift=0.8)))
    rows = [line for line in text.splitlines() if line.startswith("     0 ")]
    assert len(rows) == 8
    assert "more" in text


def test_what_was_lost_is_on_the_screen():
    skipped = [Skipped("missing tokens", None, 2), Skipped("sampling parameter", "min_tokens", 1)]
    text = screen(make_run(Made()), data=replace(DATA, num_lost_rows=7, num_discarded=1, skipped_requests=skipped))
    assert "1 sampled token never became output and was not scored" in text
    assert "SKIPPED: 1 request whose processed logprobs cannot be recomputed: min_tokens changed the logits" in text
    assert "SKIPPED: 2 requests with missing token rows" in text
    assert "DATA LOST: at least 7 rows" in text


def test_findings_are_marked():
    text = screen(edit(make_run(Made()), lambda v: np.where(np.arange(v.size) == 0, 0.5, v)))
    assert "  ! 1 recorded value is above 0, which no log-probability is." in text


@pytest.mark.parametrize("made", [Made(), Made(recorded="raw"), Made(temperature=1.0, top_p=1.0), Made(shift=0.8)])
def test_the_screen_fits_and_holds_no_nan(made):
    text = screen(make_run(made))
    assert max(map(len, text.splitlines())) <= 240
    assert len(text.splitlines()) <= 48
    assert "nan" not in text


def test_where_the_weights_came_from_is_on_the_screen():
    taken = [
        Weights(0, "/models/tiny", "trace"),
        Weights(1, "/checkpoints/9", "claim", label="step-9"),
        Weights(2, "/checkpoints/9", "same", same_as=1),
        Weights(3, "/mine", "given"),
    ]
    text = screen(make_run(Made()), scoring=replace(SCORING, weights=taken))
    assert "the weights are those in /models/tiny, the model folder that the trace names" in text
    assert "weight version 1 is taken from /checkpoints/9, as the label 'step-9' in the trace says" in text
    assert "weight version 2 was scored with the weights of 1: no fingerprint" in text
    assert "/mine" not in text


def test_every_code_has_its_sentence():
    verdict = judge(make_run(Made(num_rollouts=4))).verdict
    numbers = {"count": 3.0, "position": 8.0, "request": 2.0, "nats": 1.25, "bulk": 0.1, "times": 2.0, "allowed": 1.3}
    numbers |= {"version": 3.0, "moved": 5.0}
    said = {code: words.remark(verdict, Remark(code, numbers, ["this", "that"])) for code in get_args(Code)}
    assert len({*said.values()}) == len(said) and all(text.endswith(".") for text in said.values())
    found = {words.cause(replace(verdict, cause=code)) for code in get_args(OnPath)}
    assert len(found) == len(get_args(OnPath)) and all(text.endswith(".") for text in found)
    assert words.left(verdict) is None
    lefts = {words.left(replace(verdict, left=code)) for code in ("none", "unexplained", "leaves replay")}
    assert len(lefts) == 3 and all(text and text.endswith(".") for text in lefts)
    assert {Skipped(why, "min_tokens", 1).what for why in get_args(Why)} and set(REASONS) == {*get_args(Why)}


def test_every_cause_has_words_and_nothing_else_has():
    assert list(get_args(CauseCode)) == [cause.code for cause in CAUSES] and set(SAYINGS) == {*get_args(CauseCode)}
    assert len({saying.noun for saying in SAYINGS.values()}) == len(SAYINGS)


def test_causes_stand_with_their_proof_and_what_to_change_beside_them():
    verdict = judge(make_run(Made(recorded="raw"))).verdict
    (found,) = verdict.causes
    assert (found.code, found.layer, found.names) == ("other reading", "semantic", ["raw", "processed"])
    assert found.share > 0.9 and found.since == verdict.since and len(found.rollouts) == 16
    text = screen(make_run(Made(recorded="raw")))
    assert f"  proof of another reading: {found.margin:,.0f} nats ahead of the next, explains 9" in text
    assert "expects processed ones: record with logprobs_mode=processed_logprobs" in text
    two = replace(verdict, causes=[found, replace(found, margin=float("nan"), share=float("nan"))])
    assert sentence(found, verdict).endswith(".") and not change(found, verdict).endswith(".")
    text = to_text(replace(result_of(make_run(Made(recorded="raw"))), verdict=two))
    assert f"  and: {sentence(found, verdict)} To change: {change(found, verdict)}." in text
    assert "  proof of another reading: proved without numerics" in text
    assert proof(Explanation("other reading", "semantic", 7.0, 0.5, alternatives=["other reading"])) == (
        "7 nats ahead of the next, explains 50% of what is beyond a perfect replay, not told apart from another reading"
    )


def not_finite(run):
    return edit(run, lambda values: np.where(np.arange(values.size) == 3, np.nan, values))


WITHHELD = {"not judged", "not finite", "meaning not known", "not joined", "not compared"}
ADAPTER = replace(DATA, skipped_requests=[Skipped("adapter", None, 8)])


@pytest.mark.parametrize(
    ("run", "data", "sentence"),
    [
        (make_run(Made()), ADAPTER, "8 requests were not judged, because a LoRA adapter sampled the tokens, which"),
        (
            make_run(Made()),
            replace(DATA, skipped_requests=[Skipped("mixed kv", None, 1)]),
            "1 request was not judged, because a cached block of their KV holds the work of several weight versions",
        ),
        (
            not_finite(make_run(Made())),
            DATA,
            "1 token was not judged, because the recorded logprob is NaN or infinite: the first at position 8 of "
            "request 0.",
        ),
    ],
)
def test_a_run_of_which_a_part_was_not_judged_is_not_a_pass(run, data, sentence):
    result = result_of(run, data=data)
    assert (result.outcome, result.exit_code, result.verdict.layer) == ("withheld", 1, "none")
    text = to_text(result)
    assert text.startswith("VERDICT: withheld\n  What was judged stays within this run's noise, but not all could be")
    assert f"\n  WITHHELD: {sentence}" in text and "mean what the trainer expects" not in text
    facts = json.loads(to_json(result))
    assert (facts["outcome"], facts["exit_code"]) == ("withheld", 1)
    assert facts["verdict"]["withheld"] == plain(result.verdict.withheld) and len(facts["verdict"]["withheld"]) == 1


def test_what_doctor_and_lint_know_stands_beside_a_verdict_where_it_is_grave():
    grave = Noted(
        "lint", "raw-logprobs-with-temperature", "breaks parity", 0, 1, "raw at temperature 0.7", "record others"
    )
    facts = Facts(noted=[grave, replace(grave, id="prefix-hits", severity="note")])
    verdict = judge(make_run(Made(recorded="raw")), facts=facts).verdict
    assert verdict.noted == [grave]
    text = to_text(Result.of("0.1.0", SCORING, DATA, verdict))
    assert (
        "  lint (raw-logprobs-with-temperature, engine 0): raw at temperature 0.7" in text and "prefix-hits" not in text
    )


def test_what_is_withheld_does_not_hide_a_divergence_and_is_graver_than_a_loss():
    diverges = result_of(make_run(Made(shift=0.8)), data=replace(ADAPTER, lost=True))
    assert (diverges.outcome, diverges.exit_code) == ("diverges", 4)
    assert "WITHHELD: 8 requests" in to_text(diverges)
    assert result_of(make_run(Made()), data=replace(ADAPTER, lost=True)).exit_code == 1
    skipped = [Skipped("missing tokens", None, 2)]
    lost = result_of(make_run(Made()), data=replace(DATA, skipped_requests=skipped, lost=True))
    assert (lost.outcome, lost.exit_code, lost.verdict.withheld) == ("clean", 3, [])
    unasked = result_of(make_run(Made()), data=replace(DATA, skipped_requests=[Skipped("not asked", None, 2)]))
    assert (unasked.outcome, unasked.exit_code) == ("clean", 0)


def test_values_that_two_readings_explain_as_well_are_not_said_to_mean_either():
    run = make_run(Made())
    noise = {name: measure_noise(run, name) for name in ("raw", "processed")}
    result = result_of(run)
    tied = replace(result.verdict.semantic, kind="not told apart", closest="processed", runner_up="raw", margin=1.5)
    (unknown,) = withheld(run, tied, noise, Facts())
    result = Result.of("0.1.0", SCORING, DATA, replace(result.verdict, semantic=tied, withheld=[unknown]))
    assert (result.outcome, result.exit_code) == ("withheld", 1)
    assert (
        "  WITHHELD: It is not known what the recorded values mean, because processed and raw fit them equally well "
        "(1.5 nats) and are not the same numbers here." in to_text(result)
    )
    assert json.loads(to_json(result))["verdict"]["withheld"] == plain([unknown])
    twin = result_of(replace(run, scores={**run.scores, "sampling.no_truncation": run.trainer}))
    assert twin.verdict.semantic.kind == "not told apart" and twin.exit_code == 0  # the same numbers all over
    assert "values fit processed and processed without truncation equally well, and they stay" in to_text(twin)


def test_what_a_semantic_mismatch_leaves_is_said():
    assert "Under the right semantic nothing beyond noise is left" in screen(make_run(Made(recorded="raw")))
    assert "the inference path differs, too" in screen(make_run(Made(recorded="raw", shift=0.6)))
    assert "other sampling values" in screen(make_run(Made(engine_temperature=0.8, num_rollouts=24)))
    contradicted = screen(make_run(Made(recorded="raw", declared="processed_logprobs")), expect="raw")
    assert "  ! The engine declares processed_logprobs, but its values are raw ones (by " in contradicted


def test_json_is_strict_and_gives_the_result_back():
    result = result_of(make_run(Made(temperature=1.0, top_p=1.0)))
    assert np.isnan(result.verdict.semantic.margin)
    facts = json.loads(to_json(result), parse_constant=lambda name: pytest.fail(name))
    assert facts["verdict"]["semantic"]["margin"] is None
    assert facts["verdict"]["layer"] == "none"
    assert len(facts["verdict"]["rollouts"]) == 16
    assert "tokens" not in facts["verdict"]
    again = Result.from_dict(facts)
    assert again.to_dict() == facts
    assert type(again.verdict.rollouts[0].first_not_bit_equal) is Onset
    assert again.scoring == SCORING and np.isnan(again.verdict.semantic.margin)
    assert to_text(again) == to_text(result)


def test_a_result_of_another_version_is_refused():
    facts = result_of(make_run(Made(num_rollouts=2))).to_dict()
    with pytest.raises(ValueError, match="of version 9, and this tracekit reads 2"):
        Result.from_dict({**facts, "schema_version": 9})


def test_plain_knows_numpy_and_nesting():
    assert plain({"a": np.float64(1.5), "b": [np.int64(2), float("inf")], "c": np.array([1, 2]), 3: None}) == {
        "a": 1.5,
        "b": [2, None],
        "c": [1, 2],
        "3": None,
    }


def test_the_docs_have_a_line_for_every_cause_outcome_and_thing_withheld():
    text = (Path(__file__).parents[2] / "docs" / "verdict.md").read_text(encoding="utf-8")
    causes = text.partition("\n## Causes\n")[2].partition("\n## ")[0]
    told = dict(re.findall(r"^\| `([^`]+)` \| ([a-z ]+) \|", causes, re.MULTILINE))
    assert told == {cause.code: cause.layer for cause in CAUSES}
    unknown = text.partition("\n## What is withheld\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z ]+)` \|", unknown, re.MULTILINE)) == WITHHELD
    layers = text.partition("\n## Layers\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `([a-z ]+)` \|", layers, re.MULTILINE)) == {*get_args(Layer)}
