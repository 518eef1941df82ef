"""From a trace to its rollouts, without a scorer."""

import json

import numpy as np
import pytest

from helpers.factories import make_engine, make_prompt_logprobs, make_tables, write_trace
from tracekit.errors import ReplayRefused, TraceCorruptError
from tracekit.replay.reading import read_rollouts
from tracekit.trace.reader import open_trace


@pytest.mark.parametrize(
    ("params", "comparable"),
    [
        ({"temperature": 0.7, "top_p": 0.9}, True),
        ({"repetition_penalty": 1.1}, False),
        ({"logit_bias": {"7": 2.0}}, False),
    ],
)
def test_a_rank_counts_only_where_no_parameter_changes_the_order_of_tokens(tmp_path, params, comparable):
    tables = make_tables(2, 6, sampling_params=params)
    write_trace(tmp_path / "t.arrow", [tables])
    found = read_rollouts(open_trace(tmp_path / "t.arrow")).rollouts
    for number, rollout in enumerate(found):
        recorded = np.asarray(tables["tokens"]["rank"])[tables["tokens"]["request"] == number]
        assert rollout.rank.tolist() == (recorded.tolist() if comparable else [0] * 6)


@pytest.mark.parametrize(
    ("mode", "own", "params", "left_out"),
    [
        ("processed_logprobs", ["mine:Mine"], {"extra_args": {"ban": True}}, True),
        ("processed_logprobs", ["mine:Mine"], {"extra_args": None}, False),
        ("processed_logprobs", None, {"extra_args": {"ban": True}}, False),
        ("raw_logprobs", ["mine:Mine"], {"extra_args": {"ban": True}}, False),
    ],
)
def test_what_an_own_processor_made_of_the_logits_at_a_requests_word_is_not_judged(
    tmp_path, mode, own, params, left_out
):
    config = json.dumps({"vllm": {"model_config": {"logits_processors": own}}})
    tables = make_tables(2, 6, sampling_params=params, engine=make_engine(config=config, logprobs_mode=mode))
    write_trace(tmp_path / "t.arrow", [tables])
    trace = open_trace(tmp_path / "t.arrow")
    if left_out:
        with pytest.raises(ReplayRefused, match="logits_processors changed the logits in a way that the trace does"):
            read_rollouts(trace)
    else:
        assert len(read_rollouts(trace).rollouts) == 2


@pytest.mark.parametrize(
    "config", ["[]", "5", "{", '{"vllm": []}', '{"vllm": {"model_config": 1}}', '{"hf_config": 1}']
)
def test_settings_that_are_no_settings_are_refused_in_a_sentence_or_not_known(tmp_path, config):
    write_trace(tmp_path / "t.arrow", [make_tables(2, 6, engine=make_engine(config=config))])
    trace = open_trace(tmp_path / "t.arrow")
    if config.startswith('{"'):
        assert len(read_rollouts(trace).rollouts) == 2
    else:
        with pytest.raises(TraceCorruptError, match="the settings of an engine are not a JSON object"):
            read_rollouts(trace)


def test_requests_that_were_shed_are_counted_as_lost(tmp_path):
    tables = make_tables(2, 6)
    names = ("request", "time_ns", "request_id", "external_id", "index")
    row = {name: tables["requests"][name][:1] for name in names} | {"reason": ["full"], "request": np.array([2])}
    write_trace(tmp_path / "t.arrow", [{**tables, "shed": row}])
    data = read_rollouts(open_trace(tmp_path / "t.arrow")).data()
    assert [(one.why, one.count) for one in data.skipped_requests] == [("shed", 1)] and data.lost


@pytest.mark.parametrize(("kind", "meaning"), [("v0", "after temperature and truncation"), ("v1", "raw: V1 leaves")])
def test_prompt_logprobs_alone_are_told_apart_from_none(tmp_path, kind, meaning):
    params = {"temperature": 0.7, "prompt_logprobs": 0}
    tables = make_tables(2, 6, sampling_params=params, logprobs=False, engine=make_engine(kind=kind))
    tables["prompt_logprobs"] = make_prompt_logprobs(tables)
    write_trace(tmp_path / "t.arrow", [tables])
    with pytest.raises(ReplayRefused, match=f"for the logprobs of prompts.*8 prompt logprobs .*{meaning}") as refused:
        read_rollouts(open_trace(tmp_path / "t.arrow"))
    assert "did not ask for them" not in str(refused.value) and "logprobs=0" in str(refused.value)


@pytest.mark.parametrize(("params", "skipped"), [({}, []), ({"presence_penalty": 0.5}, ["sampling parameter"])])
def test_of_a_request_that_was_under_way_the_later_tokens_are_scored_behind_the_earlier_ones(tmp_path, params, skipped):
    tables = make_tables(2, 6, sampling_params=params)
    tokens = tables["tokens"]
    gone = (np.asarray(tokens["request"]) == 0) & (np.asarray(tokens["position"]) < 5 + 2)
    earlier, later = np.asarray(tokens["token_id"])[gone], np.asarray(tokens["token_id"])[~gone]
    of_first = np.asarray(tokens["request"])[~gone] == 0
    kept = {name: np.ma.asarray(values)[~gone] for name, values in tokens.items()}
    one = np.ones(1, "u4")
    joined = {"request": 0 * one, "engine_step": 2 * one, "num_computed": 6 * one, "token_ids": [earlier.tolist()]}
    write_trace(tmp_path / "t.arrow", [{**tables, "tokens": kept, "joined": joined}])
    found = read_rollouts(open_trace(tmp_path / "t.arrow"))
    data = found.data()
    assert [one.why for one in data.skipped_requests] == skipped and data.num_before == 2 and not data.lost
    if not skipped:
        sequence = found.rollouts[0].sequence
        assert len(found.rollouts) == 2 and sequence.token_ids.tolist() == later[of_first].tolist()
        assert sequence.prompt_token_ids[5:].tolist() == earlier.tolist() and sequence.prompt_token_ids.size == 7
