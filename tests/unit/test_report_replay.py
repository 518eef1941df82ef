"""The screen and the JSON of a replay, rendered from seeded verdicts without opening anything."""

import json

import numpy as np
import pytest

from helpers.synthetic import Made, edit, make_run
from tracekit.diagnose.plain import plain
from tracekit.diagnose.verdict import judge
from tracekit.report.json import to_json
from tracekit.report.text import to_text


def facts_of(verdict, **data):
    base = {"num_rollouts": 16, "num_tokens": 768, "num_discarded": 0, "num_lost_rows": 0, "skipped_requests": {}}
    return {
        "model": "tiny",
        "dtype": "bfloat16",
        "device": "cpu",
        "shared_weights": {},
        "data": base | data,
        "verdict": verdict.to_dict(),
    }


def screen(run, *, expect="processed", **data):
    verdict = judge(run, expect=expect)
    return to_text(facts_of(verdict, **data), verdict)


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
    text = screen(make_run(Made()), num_lost_rows=7, skipped_requests={"requests with missing token rows": 2})
    assert "SKIPPED: 2 requests with missing token rows" in text
    assert "DATA LOST: at least 7 rows" in text


def test_findings_are_marked():
    text = screen(edit(make_run(Made()), lambda v: np.where(np.arange(v.size) == 0, np.nan, v)))
    assert "  ! 1 recorded logprobs are NaN or infinite" in text


@pytest.mark.parametrize("made", [Made(), Made(recorded="raw"), Made(temperature=1.0, top_p=1.0), Made(shift=0.8)])
def test_the_screen_fits_and_holds_no_nan(made):
    text = screen(make_run(made))
    assert max(map(len, text.splitlines())) <= 240
    assert len(text.splitlines()) <= 48
    assert "nan" not in text


def test_json_is_strict_and_whole():
    verdict = judge(make_run(Made(temperature=1.0, top_p=1.0)))
    assert np.isnan(verdict.semantic.margin)
    facts = json.loads(to_json(facts_of(verdict)), parse_constant=lambda name: pytest.fail(name))
    assert facts["verdict"]["semantic"]["margin"] is None
    assert facts["verdict"]["layer"] == "none"
    assert len(facts["verdict"]["rollouts"]) == 16
    assert "tokens" not in facts["verdict"]


def test_plain_knows_numpy_and_nesting():
    assert plain({"a": np.float64(1.5), "b": [np.int64(2), float("inf")], "c": np.array([1, 2]), 3: None}) == {
        "a": 1.5,
        "b": [2, None],
        "c": [1, 2],
        "3": None,
    }
