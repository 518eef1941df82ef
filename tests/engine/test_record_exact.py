"""The trace holds exactly what the client of that run received: every token id and every float32 logprob."""

import json
from typing import Any

import pytest

from helpers.traced import assert_alternatives, completions
from tracekit.tables import NEW, PARTIAL

pytestmark = pytest.mark.engine


@pytest.fixture
def recorded(client_recorded: Any) -> Any:
    return client_recorded


def test_every_token_and_logprob_is_what_the_client_received(recorded: Any) -> None:
    trace, view = recorded
    assert trace.complete
    found = completions(trace)
    assert set(found) == {(name, index) for name, by_index in view.items() for index in by_index}
    for name, by_index in view.items():
        for index, client in by_index.items():
            engine = found[name, index]
            num_tokens = len(client["token_ids"])
            assert num_tokens and engine["token_ids"][:num_tokens] == client["token_ids"], name
            assert engine["logprobs"][:num_tokens] == client["logprobs"], name
            surplus = len(engine["token_ids"]) - num_tokens
            if name in ("stop", "abort"):
                # the client ends these; the engine may be some steps ahead when it hears of it
                assert engine["reason"] in ("abort", "length") and surplus >= 0, name
            else:
                assert surplus == 0 and engine["reason"] == client["finish_reason"], name


def test_alternatives_are_what_the_client_received(recorded: Any) -> None:
    trace, view = recorded
    assert_alternatives(trace, view)


def test_positions_have_no_holes_and_start_after_the_prompt(recorded: Any) -> None:
    trace, _ = recorded
    for seen in completions(trace).values():
        first = len(seen["prompt"])
        assert seen["positions"] == list(range(first, first + len(seen["token_ids"])))


def test_the_long_prompt_was_computed_in_chunks_in_a_changing_batch(recorded: Any) -> None:
    trace, _ = recorded
    number = {r["external_id"]: r["request"] for r in trace.table("requests").to_pylist()}["long"]
    rows = [r for r in trace.table("scheduled").to_pylist() if r["request"] == number]
    prefill = [r for r in rows if r["num_computed"] < 300]
    assert sum(r["num_tokens"] for r in prefill) == 300 and len(prefill) > 4
    assert prefill[0]["flags"] & NEW and all(r["flags"] & PARTIAL for r in prefill[:-1])
    assert not prefill[-1]["flags"] & PARTIAL
    assert len({s["num_requests"] for s in trace.table("steps").to_pylist()}) > 2


def test_each_step_accounts_for_its_requests_and_tokens(recorded: Any) -> None:
    trace, _ = recorded
    scheduled = trace.table("scheduled").to_pylist()
    tokens = trace.table("tokens").to_pylist()
    for step in trace.table("steps").to_pylist():
        own = [s for s in scheduled if s["engine_step"] == step["engine_step"]]
        assert len(own) == step["num_requests"]
        assert sum(s["num_tokens"] for s in own) == step["num_scheduled_tokens"]
        sampling = {s["request"] for s in own if not s["flags"] & PARTIAL}
        assert sampling == {t["request"] for t in tokens if t["engine_step"] == step["engine_step"]}
        assert step["output_ns"] > step["time_ns"]


def test_the_engine_row_says_what_the_numbers_mean(recorded: Any) -> None:
    trace, _ = recorded
    (engine,) = trace.engines()
    config = json.loads(engine["config"])
    assert engine["kind"] == "v1" and engine["logprobs_mode"] == "raw_logprobs"
    assert config["vllm"]["cache_config"]["enable_prefix_caching"] is True
    assert config["vllm"]["scheduler_config"]["max_num_batched_tokens"] == 64
    assert config["num_gpu_blocks"] > 0
