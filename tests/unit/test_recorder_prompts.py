"""Prompt logprobs become rows of their own: positions, alternatives, and what cannot be recorded."""

from types import SimpleNamespace as Made
from typing import Any

import numpy as np
from test_recorder_rows import Params, request
from test_recorder_v0_rows import admitted, encode, part, step

from tracekit.recorder.vllm.events import Admitted, Dispatch, Step
from tracekit.recorder.vllm.v1.rows import V1Rows


def tensors(num_rows: int, width: int, first: int = 0) -> Any:
    """LogprobsTensors of a prompt of ids first, first + 1…: the second column is the most likely token."""
    ids = np.arange(first + 1, first + 1 + num_rows)[:, None] + 100 * np.arange(width)
    return Made(logprob_token_ids=ids, logprobs=(-ids / 7).astype("f4"), selected_token_ranks=np.arange(num_rows) + 1)


def v1_rows(**asked: int | None) -> V1Rows:
    rows = V1Rows(num_blocks=2)
    for name, num in asked.items():
        admission = request(name)
        admission.sampling_params = Params()
        admission.sampling_params.prompt_logprobs = num  # type: ignore[attr-defined]
        rows.add(Admitted(1, admission))
    rows.take()
    return rows


def v1_step(prompts: dict[str, Any], engine_step: int = 3) -> Step:
    cached = Made(req_ids=[], num_computed_tokens=[], resumed_req_ids=set())
    scheduled = Made(
        num_scheduled_tokens={},
        total_num_scheduled_tokens=0,
        scheduled_new_reqs=[],
        scheduled_cached_reqs=cached,
        preempted_req_ids=set(),
        finished_req_ids=set(),
        scheduled_spec_decode_tokens={},
    )
    return Step(Dispatch(engine_step, 10, 2, 0, 50), scheduled, {}, 20, prompts=prompts)


def lists(table: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: values.tolist() for name, values in table.items()}


def test_v1_brings_a_whole_prompt_and_of_the_alternatives_those_that_were_asked_for() -> None:
    rows = v1_rows(none=0, two=2, all=-1)
    event = v1_step({"none": tensors(3, 1), "two": tensors(3, 3), "all": tensors(3, 9), "not yet": None})
    counted = rows.count(event)
    rows.add(event)
    tables = rows.take()
    assert counted == {"steps": 1, "scheduled": 0, "tokens": 0, "prompt_logprobs": 9, "prompt_topk": 6}
    ids = np.tile([1, 2, 3], 3)
    assert lists(tables["prompt_logprobs"]) == {
        "request": [0] * 3 + [1] * 3 + [2] * 3,
        "position": [1, 2, 3] * 3,
        "token_id": ids.tolist(),
        "logprob": (-ids / 7).astype("f4").tolist(),
        "rank": [1, 2, 3] * 3,
        "engine_step": [3] * 9,
    }
    beside = np.array([101, 201, 102, 202, 103, 203])
    assert lists(tables["prompt_topk"]) == {
        "request": [1] * 6,
        "position": [1, 1, 2, 2, 3, 3],
        "rank": [1, 2] * 3,
        "token_id": beside.tolist(),
        "logprob": (-beside / 7).astype("f4").tolist(),
    }
    assert not len(tables["tokens"]["token_id"])


def test_what_the_prefix_cache_left_out_is_left_out_and_leftovers_of_memory_stop_nothing() -> None:
    rows, prompt = v1_rows(a=0), tensors(2, 1, first=1)
    prompt.logprob_token_ids[0] = -1
    rows.add(v1_step({"a": prompt}))
    found = lists(rows.take()["prompt_logprobs"])
    assert found["position"] == [2, 3] and found["token_id"] == [(1 << 32) - 1, 3]


def test_a_prompt_of_one_token_has_no_row() -> None:
    rows = v1_rows(a=2)
    rows.add(v1_step({"a": tensors(0, 3)}))
    tables = rows.take()
    assert not len(tables["prompt_logprobs"]["token_id"]) and "prompt_topk" not in tables


def test_prompts_of_requests_that_are_not_recorded_are_counted() -> None:
    rows = v1_rows()
    event = v1_step({"ghost": tensors(3, 3)})
    rows.add(event)
    assert "prompt_logprobs" not in rows.take()
    assert rows.take_orphans() == {"prompt_logprobs": 3, "prompt_topk": 6}


def test_rows_of_prompts_fill_a_batch_too_and_what_is_pending_is_known_by_table() -> None:
    rows = v1_rows(a=1)
    rows.add(v1_step({"a": tensors(3, 2)}))
    assert rows.num_tokens() == 3
    assert rows.pending() == {"steps": 1, "scheduled": 0, "tokens": 0, "prompt_logprobs": 3, "prompt_topk": 3}
    rows.take()
    assert rows.num_tokens() == 0 and rows.pending() == {}


def v0_step(number: int, chunk: int, reported: list[dict[int, Any]] | None, *, do_sample: bool = True) -> Step:
    event = step(number, part("a", chunk, is_prompt=True, do_sample=do_sample))
    event.outputs[0].prompt_logprobs = reported
    event.scheduled[0].sampling_params.prompt_logprobs = 1
    return event


def scored(token_id: int, best: int) -> dict[int, Any]:
    """What V0 reports of a token of rank 1 or 3: its entry becomes that of an alternative in place."""
    found = {token_id: Made(logprob=-3.0 - token_id, rank=3)}
    return {**found, best: Made(logprob=-float(best), rank=1)}


def test_v0_brings_a_prompt_chunk_by_chunk() -> None:
    admission = admitted("a", 4)
    admission.request.sampling_params.prompt_logprobs = 1
    chunks = v0_step(0, 2, [scored(1, 9), scored(2, 2)], do_sample=False), v0_step(1, 2, [scored(3, 8)])
    tables, rows = encode(admission, *chunks, step(2, part("a", 1, is_prompt=False)))
    assert lists(tables["prompt_logprobs"]) == {
        "request": [0] * 3,
        "position": [1, 2, 3],
        "token_id": [1, 2, 3],
        "logprob": [-4.0, -2.0, -6.0],
        "rank": [3, 1, 3],
        "engine_step": [0, 0, 1],
    }
    assert lists(tables["prompt_topk"]) == {
        "request": [0] * 3,
        "position": [1, 2, 3],
        "rank": [1] * 3,
        "token_id": [9, 2, 8],
        "logprob": [-9.0, -2.0, -8.0],
    }
    assert tables["tokens"]["position"].tolist() == [4, 5]
    counted = rows.count(chunks[0])
    assert counted == {"steps": 1, "scheduled": 1, "tokens": 0, "prompt_logprobs": 2, "prompt_topk": 2}


def test_v0s_prompts_of_requests_that_are_not_recorded_are_counted() -> None:
    _, rows = encode(v0_step(0, 2, [scored(1, 9)], do_sample=False))
    assert rows.take_orphans() == {"scheduled": 1, "prompt_logprobs": 1, "prompt_topk": 1}
