"""``tracekit doctor`` beside what clients received: the same tokens and values, but behind a stop string."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from helpers.doctored import CLIENTS, asking, found, report_of, view_of
from helpers.factories import make_engine, make_tables
from tracekit.audit.doctor.client import client_view
from tracekit.audit.rows import read_engines
from tracekit.report.doctor import to_lines
from tracekit.trace.reader import open_trace


def test_the_clients_view_is_compared_bit_for_bit(tmp_path):
    tables = asking()
    view = list(view_of(tables))
    report = report_of(tmp_path, tables, view)
    assert report.violations == [] and report.completions == 2
    engines = list(read_engines(open_trace(tmp_path / "t.arrow")))
    for check, change in CLIENTS:
        assert [f.check.id for f in client_view(engines, [view[0], {**view[1], **change(view[1])}]).findings] == [check]


@pytest.mark.parametrize("told", ["abort", None])
def test_the_client_may_have_fewer_tokens_of_a_request_that_it_aborted(tmp_path, told):
    tables = asking()
    view = list(view_of(tables))
    tables["finishes"]["reason"][0] = "abort"
    view[0].update(token_ids=view[0]["token_ids"][:5], logprobs=view[0]["logprobs"][:5], finish_reason=told)
    assert report_of(tmp_path, tables, view).violations == []
    view[0].update(
        token_ids=[*tables["tokens"]["token_id"][tables["tokens"]["request"] == 0].tolist(), 9], logprobs=None
    )
    (tmp_path / "more").mkdir()
    assert found(report_of(tmp_path / "more", tables, view)) == {("client-tokens", 0, None)}


def client_findings(path, tables, view):
    (path / "t.arrow").unlink(missing_ok=True)
    return {(f.check.id, e.text) for f in report_of(path, tables, view).violations for e in f.examples}


def test_another_prompt_is_named_with_position_and_both_ids(tmp_path):
    tables = asking()
    view = list(view_of(tables))
    ids = view[0]["prompt_token_ids"]
    view[0]["prompt_token_ids"] = [*ids[:2], 7, *ids[3:]]
    view[1]["prompt_token_ids"] = view[1]["prompt_token_ids"][:4]
    last = tables["requests"]["prompt_token_ids"][1][4]
    assert client_findings(tmp_path, tables, view) == {
        (
            "client-prompt",
            f"completion 0 of request 'request-0': prompt token 2 is 7 for the client, {ids[2]} in the trace",
        ),
        (
            "client-prompt",
            f"completion 0 of request 'request-1': prompt token 4 is not there for the client, {last} in the trace; "
            "4 tokens against 5",
        ),
    }


def siblings():
    """Two requests that are the two completions of one."""
    tables = asking()
    tables["requests"]["external_id"] = ["many", "many"]
    tables["requests"]["index"] = np.arange(2, dtype="u4")
    tables["requests"]["prompt_token_ids"] = [tables["requests"]["prompt_token_ids"][0]] * 2
    return tables, [{**row, "index": index, "request": 0} for index, row in enumerate(view_of(tables))]


def test_each_completion_of_a_request_is_the_one_that_it_says(tmp_path):
    tables, view = siblings()
    assert client_findings(tmp_path, tables, view) == set()
    assert client_findings(tmp_path, tables, [{**view[0], "index": 1}, {**view[1], "index": 0}]) == {
        ("client-index", "completion 1 of request 'many': it is completion 0 in the trace"),
        ("client-index", "completion 0 of request 'many': it is completion 1 in the trace"),
        ("client-order", "line 2: completion 0 of prompt 0 stands after completion 1 of prompt 0"),
    }
    other = {**view[0], "index": 2, "token_ids": [1] * 8}
    assert client_findings(tmp_path, tables, [*view, other]) == {
        ("client-index", "completion 2 of request 'many': the trace has completions 0, 1 of this request")
    }


def test_a_completion_that_a_client_left_out_is_named(tmp_path):
    tables, view = siblings()
    left_out = "completion 0 of request 'many': the client has completion 1 only"
    assert client_findings(tmp_path, tables, view[1:]) == {("client-incomplete", left_out)}
    tables["finishes"]["reason"] = ["abort", "length"]
    assert client_findings(tmp_path, tables, view[1:]) == set()


def test_a_line_that_is_there_twice_is_named_and_a_name_may_be_used_twice(tmp_path):
    tables = asking()
    view = list(view_of(tables))
    again = "line 3: completion 0 of request 'request-0' is in line 1 already"
    assert client_findings(tmp_path, tables, [*view, view[0]]) == {("client-duplicate", again)}
    tables["requests"]["external_id"] = ["same", "same"]
    assert client_findings(tmp_path, tables, list(view_of(tables))[::-1]) == set()


def test_lines_that_stand_in_another_order_than_their_prompts_are_named(tmp_path):
    tables = asking()
    view = [{**row, "request": number} for number, row in enumerate(view_of(tables))]
    moved = "line 2: completion 0 of prompt 0 stands after completion 0 of prompt 1"
    assert client_findings(tmp_path, tables, view[::-1]) == {("client-order", moved)}


def test_logprobs_that_the_file_does_not_have_are_said_not_to_be_compared(tmp_path):
    tables = asking()
    view = [{name: value for name, value in row.items() if name != "logprobs"} for row in view_of(tables)]
    report = report_of(tmp_path, tables, view)
    assert report.violations == []
    assert report.not_compared == ["the logprobs of 2 completions, which the file does not have"]


@pytest.fixture
def stopping(tmp_path):
    """A request that reads "w10 w11 ... w17" and ends at w14; the engine was three tokens ahead when it heard of it."""
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(1000)}, unk_token="w0"))
    words.save(str(tmp_path / "tokenizer.json"))
    params = {"temperature": 1.0, "logprobs": 0, "stop": ["w12 w14", "3 w14"]}

    def stopped(kind="v1", folder=tmp_path, reason="abort", **more):
        config = json.dumps({"vllm": {"model_config": {"tokenizer": str(folder), "tokenizer_mode": "auto"}}})
        engine = make_engine(kind=kind, config=config)
        tables = make_tables(1, 8, sampling_params=params | more, engine=engine)
        tables["tokens"]["token_id"] = np.arange(10, 18, dtype="u4")
        tables["finishes"]["reason"][0] = reason
        (seen,) = view_of(tables)
        return tables, {**seen, "finish_reason": "stop", "text": "w10 w11 w12 w1"}

    return stopped


def cut(seen, count, **values):
    return [{**seen, "token_ids": seen["token_ids"][:count], "logprobs": seen["logprobs"][:count], **values}]


@pytest.mark.parametrize("reason", ["abort", "length", "stop"])
def test_of_a_stop_string_the_client_has_the_token_that_completes_it_and_no_other_count(tmp_path, stopping, reason):
    tables, seen = stopping(reason=reason)
    assert client_findings(tmp_path, tables, cut(seen, 5)) == set()
    for count in (0, 3, 4, 6, 7):
        (finding,) = client_findings(tmp_path, tables, cut(seen, count))
        assert finding == (
            "client-tokens",
            f"completion 0 of request 'request-0': the client received {count} tokens, the trace has 8, "
            "and a stop string ends it at 5",
        )


def test_a_stop_string_is_looked_for_as_the_engine_does(tmp_path, stopping):
    shown = {"stop": ["w17 w1", "w13 w14"], "include_stop_str_in_output": True}
    for more in ({"stop": "w14"}, {"min_tokens": 4}, shown):
        tables, seen = stopping(**more)
        assert client_findings(tmp_path, tables, cut(seen, 5)) == set()
    tables, seen = stopping(min_tokens=5)  # what is whole by then is let through
    ((check, text),) = client_findings(tmp_path, tables, cut(seen, 5))
    assert check == "client-tokens" and text.endswith("the trace has 8, and no stop string in them")
    tables, seen = stopping(stop=["w17"], reason="stop")  # a stop token, which is not decoded
    ((check, _),) = client_findings(tmp_path, tables, cut(seen, 7))
    assert check == "client-tokens" and client_findings(tmp_path, tables, cut(seen, 8)) == set()


def test_a_step_of_several_tokens_is_delivered_whole_or_up_to_the_stop_string(tmp_path, stopping):
    tables, seen = stopping()
    tables["tokens"]["engine_step"] = np.array([0, 1, 2, 3, 4, 4, 5, 6], "u4")
    for count in (5, 6):
        assert not [c for c, _ in client_findings(tmp_path, tables, cut(seen, count)) if c.startswith("client")]
    assert "client-tokens" in {check for check, _ in client_findings(tmp_path, tables, cut(seen, 7))}


def test_only_a_stop_string_shortens_what_a_stop_string_may(tmp_path, stopping):
    tables, seen = stopping(reason="length")
    assert {c for c, _ in client_findings(tmp_path, tables, cut(seen, 5, finish_reason="length"))} == {"client-tokens"}
    assert {c for c, _ in client_findings(tmp_path, tables, cut(seen, 8))} == {"client-finish"}
    tables, seen = stopping("v0", reason="stop")  # V0 stops in the engine
    assert client_findings(tmp_path, tables, cut(seen, 8)) == set()
    assert {c for c, _ in client_findings(tmp_path, tables, cut(seen, 5))} == {"client-tokens"}
    tables, seen = stopping(stop=[])
    assert {c for c, _ in client_findings(tmp_path, tables, cut(seen, 8))} == {"client-finish"}


def test_without_the_engines_tokenizer_the_end_is_said_not_to_be_compared(tmp_path, stopping):
    tables, seen = stopping(folder=tmp_path / "gone")
    report = report_of(tmp_path, tables, cut(seen, 3))
    assert report.violations == []
    told = f"where a stop string ended 1 completion, which takes the engine's tokenizer: {tmp_path}/gone/tokenizer.json"
    assert report.not_compared == [told]
    assert any(told in line for line in to_lines({**report.to_dict(), "live": None}, []))
