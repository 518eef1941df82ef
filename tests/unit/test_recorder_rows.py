"""Events of a V1 engine become rows: the awkward steps that a small CPU engine does not show."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace as Made
from typing import Any

import numpy as np

from tracekit.recorder.vllm.events import Admitted, Dispatch, Finished, Named, Step
from tracekit.recorder.vllm.v1.rows import V1Rows
from tracekit.tables import ACCEPTED, DISCARDED, NEW, PARTIAL, PREEMPTED, PREFILL, RESUMED


@dataclass
class Params:
    temperature: float = 0.7
    logprobs: int | None = 0
    extra_args: dict[str, Any] = field(default_factory=lambda: {"rollout": 7})
    _all_stop_token_ids: set[int] = field(default_factory=lambda: {2})


def request(request_id: str, num_prompt: int = 4) -> Any:
    prompt = list(range(num_prompt))
    fields = {"sampling_params": Params(), "lora_request": None, "cache_salt": None, "trace_headers": None}
    return Made(request_id=request_id, prompt_token_ids=prompt, num_prompt_tokens=num_prompt, **fields)


def rows_with(*request_ids: str) -> V1Rows:
    rows = V1Rows(num_blocks=101)
    for request_id in request_ids:
        rows.add(Admitted(1, request(request_id)))
    rows.take()
    return rows


def step(
    rows: V1Rows,
    scheduled: dict[str, tuple[int, int]],
    sampled: dict[str, list[int]],
    accepted: dict[str, list[int]] | None = None,
    *,
    new: tuple[str, ...] = (),
    resumed: tuple[str, ...] = (),
    preempted: tuple[str, ...] = (),
    drafts: dict[str, list[int]] | None = None,
    logprobs: Any = "made",
    other: Any = None,
    engine_step: int = 3,
) -> dict[str, Any]:
    """Feed one step: scheduled is id -> (num_tokens, num_computed); returns the rows it became."""
    old = [r for r in scheduled if r not in new]
    output = Made(
        num_scheduled_tokens={r: n for r, (n, _) in scheduled.items()},
        total_num_scheduled_tokens=sum(n for n, _ in scheduled.values()),
        scheduled_new_reqs=[Made(req_id=r, num_computed_tokens=scheduled[r][1]) for r in new],
        scheduled_cached_reqs=Made(
            req_ids=old, num_computed_tokens=[scheduled[r][1] for r in old], resumed_req_ids=set(resumed)
        ),
        preempted_req_ids=set(preempted),
        finished_req_ids=set(),
        scheduled_spec_decode_tokens=drafts or {},
    )
    ids = [sampled.get(r, []) for r in scheduled]
    starts = np.cumsum([0, *map(len, ids)]).tolist()
    if logprobs == "made":
        flat = -np.arange(1, starts[-1] + 1, dtype="f4") / 3
        logprobs = Made(
            logprobs=flat[:, None], sampled_token_ranks=np.ones(starts[-1], "i8"), cu_num_generated_tokens=starts
        )
    made = [Made(request_id=r, new_token_ids=t, finish_reason=None) for r, t in (accepted or sampled).items()]
    row_of = {r: i for i, r in enumerate(scheduled)}
    at = Dispatch(engine_step, 10, 2, 0, 50)
    rows.add(Step(at, output, {0: Made(outputs=made)}, 20, ids, row_of, logprobs, other))
    return rows.take()


def test_accepted_against_sampled_tokens_of_a_speculative_step() -> None:
    rows = rows_with("a", "b")
    tokens = step(rows, {"a": (3, 4), "b": (3, 4)}, {"a": [11, 12, 13], "b": [21]}, {"a": [11, 12], "b": [21]})[
        "tokens"
    ]
    assert tokens["token_id"].tolist() == [11, 12, 13, 21]
    assert tokens["position"].tolist() == [4, 5, 6, 4]
    assert tokens["flags"].tolist() == [ACCEPTED, ACCEPTED, DISCARDED, ACCEPTED]
    assert tokens["rollout_logprob"].tolist() == (-np.arange(1, 5, dtype="f4") / 3).tolist()
    assert set(tokens["weight_version"].tolist()) == {2} and set(tokens["engine_step"].tolist()) == {3}
    # the next token of "a" takes the place of the one that was thrown away
    assert step(rows, {"a": (1, 6)}, {"a": [14]})["tokens"]["position"].tolist() == [6]


def test_behind_missing_steps_tokens_stand_where_the_scheduler_has_them() -> None:
    rows = V1Rows(num_blocks=101, first_step=0)
    for name in "abc":
        rows.add(Admitted(1, request(name)))
    step(rows, {"a": (4, 0), "b": (4, 0)}, {"a": [1], "b": [5]}, new=("a", "b"), engine_step=0)
    # in steps 1 and 2 "a" samples two tokens, "b" one, and "c" its first
    scheduled, drafts = {"a": (1, 6), "b": (4, 5), "c": (1, 4)}, {"b": [7, 8, 0]}
    tokens = step(rows, scheduled, {"a": [4], "b": [7, 8, 9], "c": [2]}, drafts=drafts, engine_step=3)["tokens"]
    assert tokens["position"].tolist() == [7, 6, 7, 8, 5]
    tokens = step(rows, {"a": (1, 7), "b": (1, 8)}, {"a": [5], "b": [6]}, engine_step=4)["tokens"]
    assert tokens["position"].tolist() == [8, 9]
    # what the scheduler takes for computed may hold drafts that are rejected
    rows._blocks.late_rejections = True
    left = step(rows, {"a": (1, 9), "b": (1, 10)}, {"a": [5], "b": [6]}, engine_step=6)["tokens"]
    assert left["position"].tolist() == []
    assert rows.take_orphans() == {"scheduled": 2, "tokens": 2}


def test_requests_whose_first_step_is_missing_begin_where_the_scheduler_has_them() -> None:
    rows = V1Rows(num_blocks=101, first_step=0)
    rows.add(Admitted(1, request("a")))
    tokens = step(rows, {"a": (1, 4)}, {"a": [9]}, engine_step=1)["tokens"]
    assert tokens["position"].tolist() == [5]


def test_a_request_that_the_engine_has_no_more_ended_unseen() -> None:
    rows = rows_with("a", "b")
    assert rows.num_unseen(lambda name: True) == 0 and rows.num_unseen(lambda name: name == "a") == 1


def test_a_token_sampled_for_an_aborted_request_is_discarded() -> None:
    rows = rows_with("a")
    rows.add(Finished(["a"], "abort", 3, 15))
    tables = step(rows, {"a": (1, 4)}, {"a": [11]}, {"other": []})
    assert tables["tokens"]["flags"].tolist() == [DISCARDED]
    assert tables["finishes"]["reason"] == ["abort"] and tables["finishes"]["num_output_tokens"].tolist() == [0]


def test_chunks_resumptions_and_preemptions_are_flagged() -> None:
    rows = rows_with("a", "b", "c", "d")
    scheduled = step(
        rows,
        {"a": (2, 0), "b": (4, 0), "c": (1, 6)},
        {"b": [1], "c": [2]},
        new=("a",),
        resumed=("b",),
        preempted=("d",),
    )["scheduled"]
    flags = dict(zip(scheduled["request"].tolist(), scheduled["flags"].tolist(), strict=True))
    assert flags == {0: NEW | PREFILL | PARTIAL, 1: RESUMED | PREFILL, 2: 0, 3: PREEMPTED}
    assert scheduled["num_computed"].tolist() == [0, 0, 6, 0]


def test_a_request_that_is_new_a_second_time_is_resumed() -> None:
    rows = rows_with("a", "b")
    assert step(rows, {"a": (4, 0)}, {"a": [1]}, new=("a",))["scheduled"]["flags"].tolist() == [NEW | PREFILL]
    step(rows, {"b": (4, 0)}, {"b": [1]}, new=("b",), preempted=("a",))
    again = step(rows, {"a": (5, 0), "b": (1, 4)}, {"a": [2], "b": [2]}, new=("a",))["scheduled"]
    assert again["flags"].tolist() == [RESUMED | PREFILL, 0]


def test_drafts_that_a_step_verifies_are_counted() -> None:
    rows = rows_with("a", "b")
    tables = step(rows, {"a": (3, 4), "b": (1, 4)}, {"a": [5, 6], "b": [7]}, drafts={"a": [5, 9]})
    assert tables["scheduled"]["num_draft"].tolist() == [2, 0]


def test_who_did_not_ask_has_no_logprobs_though_the_batch_has_them() -> None:
    rows = rows_with("a")
    silent, pooled = request("b"), request("c")
    silent.sampling_params, pooled.sampling_params = Params(logprobs=None), None
    rows.add(Admitted(1, silent))
    rows.add(Admitted(1, pooled))
    assert rows.take()["requests"]["sampling_params"][1] == "{}"
    tokens = step(rows, {"b": (2, 4), "a": (1, 4)}, {"b": [7, 8], "a": [9]})["tokens"]
    assert np.ma.getmaskarray(tokens["rollout_logprob"]).tolist() == [True, True, False]
    assert np.ma.getmaskarray(tokens["rank"]).tolist() == [True, True, False]
    assert tokens["rollout_logprob"][2] == np.float32(-1)


def test_everybodys_logprobs_raw_and_processed() -> None:
    reported, other = [-1 / 3, -2 / 3], np.array([-5, -6], "f4")
    for mode, own, computed in (
        ("raw_logprobs", "raw_logprob", "processed_logprob"),
        ("processed_logprobs", "processed_logprob", "raw_logprob"),
    ):
        rows, silent = V1Rows(2, "both", mode), request("b")
        silent.sampling_params = Params(logprobs=None)
        rows.add(Admitted(1, request("a")))
        rows.add(Admitted(1, silent))
        tokens = step(rows, {"b": (1, 4), "a": (1, 4)}, {"b": [7], "a": [9]}, other=other)["tokens"]
        assert tokens["rollout_logprob"].tolist() == tokens[own].tolist() == np.array(reported, "f4").tolist()
        assert tokens[computed].tolist() == [-5, -6]
        # a step whose sampler sends nothing along
        tokens = step(rows, {"b": (1, 5), "a": (1, 5)}, {"b": [7], "a": [9]})["tokens"]
        assert tokens[own].tolist() == np.array(reported, "f4").tolist()
        assert np.ma.getmaskarray(tokens[computed]).all()


def test_logits_are_neither_raw_nor_processed_logprobs() -> None:
    rows = V1Rows(2, "both", "raw_logits")
    rows.add(Admitted(1, request("a")))
    tokens = step(rows, {"a": (1, 4)}, {"a": [9]})["tokens"]
    assert not np.ma.getmaskarray(tokens["rollout_logprob"]).any()
    assert np.ma.getmaskarray(tokens["raw_logprob"]).all() and np.ma.getmaskarray(tokens["processed_logprob"]).all()


def test_tokens_of_a_streaming_input_session_are_counted_as_lost_not_misplaced() -> None:
    rows, session = V1Rows(num_blocks=2), request("s")
    session.resumable = True
    rows.add(Admitted(1, session))
    tables = step(rows, {"s": (1, 4)}, {"s": [5]})
    assert "requests" not in tables and not len(tables["tokens"]["token_id"])
    assert rows.take_orphans() == {"tokens": 1, "scheduled": 1}


def test_without_logprobs_they_are_null() -> None:
    tokens = step(rows_with("a"), {"a": (1, 4)}, {"a": [9]}, logprobs=None)["tokens"]
    assert np.ma.getmaskarray(tokens["rollout_logprob"]).all() and np.ma.getmaskarray(tokens["rank"]).all()


def test_a_step_that_samples_nothing_at_all() -> None:
    rows = rows_with("a")
    tables = step(rows, {"a": (2, 0)}, {}, logprobs=None)
    assert "token_id" not in tables.get("tokens", {}) or not len(tables["tokens"]["token_id"])
    assert tables["scheduled"]["flags"].tolist() == [PREFILL | PARTIAL]


def test_rows_of_a_request_that_was_not_recorded_are_counted() -> None:
    rows = rows_with()
    tables = step(rows, {"ghost": (1, 4)}, {"ghost": [5]})
    assert not len(tables["tokens"]["token_id"])
    assert rows.take_orphans() == {"tokens": 1, "scheduled": 1} and rows.take_orphans() == {}


def test_children_of_one_request_keep_their_parent_and_labels() -> None:
    rows = V1Rows(num_blocks=2)
    for i in range(2):
        rows.add(Named(f"{i}_chat-1234abcd", "chat"))
        rows.add(Admitted(1, request(f"{i}_chat-1234abcd")))
    requests = rows.take()["requests"]
    assert requests["external_id"] == ["chat", "chat"] and requests["parent_id"] == ["chat", "chat"]
    assert requests["index"].tolist() == [0, 1] and requests["request"].tolist() == [0, 1]
    assert requests["labels"] == ['{"rollout":7}'] * 2
    assert json.loads(requests["sampling_params"][0])["all_stop_token_ids"] == [2]


def test_ids_that_look_like_others_or_are_empty_are_what_they_are() -> None:
    rows = V1Rows(num_blocks=2)
    for name, external in (("0_-12ab", ""), ("-34cd", ""), ("0_x-56ef", "0_x"), ("²_x-78ab", "²_x")):
        rows.add(Named(name, external))
        rows.add(Admitted(1, request(name)))
    requests = rows.take()["requests"]
    assert requests["external_id"] == ["", "", "0_x", "²_x"] and requests["parent_id"] == ["", None, None, None]


def test_a_share_can_be_recorded_of_requests_whose_ids_no_encoding_has() -> None:
    rows = V1Rows(num_blocks=2, sample=0.5)
    assert len({rows.is_sampled(f"\ud800{i}") for i in range(64)}) == 2


def test_kv_usage_is_the_share_of_usable_blocks() -> None:
    steps = step(rows_with("a"), {"a": (1, 4)}, {"a": [9]})["steps"]
    assert steps["kv_usage"].tolist() == [0.5]
    assert steps["time_ns"].tolist() == [10] and steps["output_ns"].tolist() == [20]


def test_finishes_that_cannot_be_queued_are_counted() -> None:
    assert V1Rows(num_blocks=2).count(Finished(["a", "b"], "abort", 3, 15)) == {"finishes": 2}


def test_each_request_has_as_many_alternatives_as_it_asked_for_though_the_batch_has_more() -> None:
    rows = rows_with("none")
    for name, k in (("two", 2), ("three", 3), ("all", -1)):
        asking = request(name)
        asking.sampling_params = Params(logprobs=k)
        rows.add(Admitted(1, asking))
    rows.take()
    ids = np.arange(20, dtype="i4").reshape(5, 4)
    made = Made(
        logprobs=-ids.astype("f4") / 7,
        logprob_token_ids=ids,
        sampled_token_ranks=np.ones(5, "i8"),
        cu_num_generated_tokens=[0, 1, 3, 4, 5],
    )
    lengths = {"none": 1, "two": 2, "three": 1, "all": 1}
    sampled = {name: [9] * n for name, n in lengths.items()}
    # the second token of "two" is a rejected draft
    tables = step(rows, {n: (1, 4) for n in lengths}, sampled, {**sampled, "two": [9]}, logprobs=made)
    topk = tables["topk"]
    assert topk["request"].tolist() == [1, 1, 1, 1, 2, 2, 2]
    assert topk["position"].tolist() == [4, 4, 5, 5, 4, 4, 4]
    assert topk["rank"].tolist() == [1, 2, 1, 2, 1, 2, 3]
    assert topk["token_id"].tolist() == [5, 6, 9, 10, 13, 14, 15]
    assert topk["logprob"].tolist() == (-topk["token_id"].astype("f4") / 7).tolist()


def test_alternatives_of_a_step_that_cannot_be_encoded_are_counted() -> None:
    rows = rows_with("none")
    asking = request("two")
    asking.sampling_params = Params(logprobs=2)
    rows.add(Admitted(1, asking))
    wide = Made(logprobs=np.zeros((4, 6), "f4"))
    scheduled = Made(num_scheduled_tokens={"none": 1, "two": 2, "unknown": 1})
    sampled = ([[5], [6, 7], [8]], {"none": 0, "two": 1, "unknown": 2}, wide)
    counted = rows.count(Step(Dispatch(3, 10, 2, 0, 50), scheduled, {}, 20, *sampled))
    # of a request that is still in the queue the batch's width is all that is known
    assert counted == {"steps": 1, "scheduled": 3, "tokens": 4, "topk": 2 * 2 + 5}
