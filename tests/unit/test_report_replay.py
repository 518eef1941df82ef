"""The screen and the JSON of a replay, rendered from seeded verdicts without opening anything."""

import json
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from helpers.synthetic import Made, edit, make_run
from tracekit.diagnose.causes import Cause
from tracekit.diagnose.onset import Onset
from tracekit.diagnose.plain import plain
from tracekit.diagnose.remarks import Code, Remark
from tracekit.diagnose.result import SCHEMA_VERSION, Data, Result, Scoring, Weights
from tracekit.diagnose.skipped import REASONS, Skipped, Why
from tracekit.diagnose.verdict import judge
from tracekit.report import words
from tracekit.report.json import to_json
from tracekit.report.text import to_text

SCORING = Scoring(
    "tiny", "bfloat16", "float32", "cpu", "packed", "bfloat16", 2.5, 4096, 61.0, 3 << 30, [Weights(0, "/tiny", "given")]
)
DATA = Data(16, 768, 0, 0, [], None, False)


def result_of(run, *, expect="processed", data=DATA, scoring=SCORING):
    verdict = judge(run, expect=expect).verdict
    return Result(SCHEMA_VERSION, "0.1.0", 0 if verdict.layer == "none" else 4, scoring, data, verdict)


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
    text = screen(edit(make_run(Made()), lambda v: np.where(np.arange(v.size) == 0, np.nan, v)))
    assert (
        "  ! 1 recorded logprob is NaN or infinite, the first at position 5 of request 0; it enters no number here."
        in text
    )


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
    numbers = {"count": 3.0, "position": 8.0, "request": 2.0, "nats": 1.25}
    said = {code: words.remark(verdict, Remark(code, numbers)) for code in get_args(Code)}
    assert len({*said.values()}) == len(said) and all(text.endswith(".") for text in said.values())
    causes = {words.cause(replace(verdict, cause=code)) for code in get_args(Cause)}
    assert len(causes) == len(get_args(Cause)) and all(text.endswith(".") for text in causes)
    assert words.left(verdict) is None
    lefts = {words.left(replace(verdict, left=code)) for code in ("none", "unexplained", "leaves replay")}
    assert len(lefts) == 3 and all(text and text.endswith(".") for text in lefts)
    assert {Skipped(why, "min_tokens", 1).what for why in get_args(Why)} and set(REASONS) == {*get_args(Why)}


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
    with pytest.raises(ValueError, match="of version 2, and this tracekit reads 1"):
        Result.from_dict({**facts, "schema_version": 2})


def test_plain_knows_numpy_and_nesting():
    assert plain({"a": np.float64(1.5), "b": [np.int64(2), float("inf")], "c": np.array([1, 2]), 3: None}) == {
        "a": 1.5,
        "b": [2, None],
        "c": [1, 2],
        "3": None,
    }
