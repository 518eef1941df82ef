"""What a re-run is told of a recorded engine, and what it refuses by name."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from tracekit.engines.env import EngineEnv
from tracekit.errors import ReplayRefused
from tracekit.replay.rerun import run_again
from tracekit.replay.rerun_recorded import Recorded, cannot_force
from tracekit.replay.rerun_script import as_recorded, uncached
from tracekit.replay.rerun_settings import engine_arguments, environ_of, expected_settings, other_weights, unlike
from tracekit.tables import NEW, PREEMPTED
from tracekit.trace.ledger import Loss

VLLM = {
    "model_config": {"dtype": "torch.bfloat16", "max_model_len": 64, "quantization": None, "hf_overrides": {}},
    "cache_config": {"block_size": 16, "cache_dtype": "auto", "enable_prefix_caching": True},
    "scheduler_config": {"max_num_batched_tokens": 32, "max_num_seqs": 4, "policy": "fcfs"},
    "compilation_config": {"mode": "NONE"},
}
CONFIG = {"vllm": VLLM, "hf_config": {"vocab_size": 9, "use_cache": True}, "num_gpu_blocks": 12}


class Told:
    """A trace of one engine, given row by row."""

    def __init__(self, **tables):
        self._tables, self._losses = tables, []

    def engines(self):
        return [{"engine": 0, "kind": "v1", "config": json.dumps(CONFIG)}]

    def only(self, engine):
        return self

    def table(self, name):
        return SimpleNamespace(to_pylist=lambda: [{"engine": 0, **row} for row in self._tables.get(name, [])])

    def all_losses(self):
        return self._losses


def request(number, time_ns, **more):
    row = {"request": number, "time_ns": time_ns, "request_id": f"r{number}", "prompt_token_ids": [1, 2, 3]}
    return {**row, "sampling_params": "{}", "cache_salt": None, "lora": None, "num_mm_features": 0, **more}


def step(number, time_ns, output_ns, version=0):
    return {"engine_step": number, "time_ns": time_ns, "output_ns": output_ns, "weight_version": version}


def part(number, request_number, tokens, computed, flags=0, drafts=0):
    row = {"engine_step": number, "request": request_number, "num_tokens": tokens, "num_computed": computed}
    return {**row, "flags": flags, "num_draft": drafts}


def token(number, request_number, position, token_id):
    return {"engine_step": number, "request": request_number, "position": position, "token_id": token_id}


ROWS = {
    "requests": [request(0, 10), request(1, 25)],
    "steps": [step(0, 20, 30), step(1, 40, 50, 1), step(2, 60, 70, 1)],
    "scheduled": [part(0, 0, 3, 0, NEW), part(1, 0, 1, 3), part(1, 1, 1, 2, NEW), part(2, 0, 0, 0, PREEMPTED),
                  part(2, 1, 1, 3)],
    "tokens": [token(0, 0, 3, 7), token(1, 0, 4, 8), token(1, 1, 3, 9), token(2, 1, 4, 5)],
    "cache": [{"engine_step": 1, "request": 1, "kv_group": 0, "block_id": 4}],
    "finishes": [{"request": 0, "reason": "abort", "time_ns": 65}, {"request": 1, "reason": "stop", "time_ns": 70}],
    "control": [
        {"name": "reset_prefix_cache", "answer": "true", "time_ns": 35, "arguments": '{"args":[],"kwargs":{}}'},
        {"name": "reset_prefix_cache", "answer": "false", "time_ns": 36, "arguments": '{"args":[true],"kwargs":{}}'},
    ],
}  # fmt: skip
FOLDERS = {0: "/a", 1: "/b"}


def test_events_come_in_the_order_in_which_the_engine_had_them():
    assert as_recorded(Recorded(Told(**ROWS), 0), FOLDERS) == [
        ["add", 0, True],
        ["step", 0, [[0, 3, 0, [7]]], []],
        ["add", 1, True],
        ["take", 0],
        ["reset", False],
        ["load", "/b"],
        ["step", 1, [[0, 1, 3, [8]], [1, 1, 2, [9]]], []],
        ["take", 1],
        ["step", 2, [[1, 1, 3, [5]]], [0]],
        ["abort", [0]],
        ["take", 2],
    ]


def test_without_the_cache_the_step_that_found_something_computes_it():
    recorded = Recorded(Told(**ROWS), 0)
    events = uncached(as_recorded(recorded, FOLDERS), recorded)
    assert events[0] == ["add", 0, False] and ["load", "/b"] in events
    assert ["room", 4] in events and ["step", 1, [[0, 1, 3, [8]], [1, 3, 0, [9]]], []] in events


def test_a_step_scheduled_before_the_last_one_ended_is_planned_ahead():
    assert not Recorded(Told(**ROWS), 0).plans_ahead
    ahead = [step(0, 20, 45), step(1, 40, 50, 1), step(2, 60, 70, 1)]
    assert Recorded(Told(**{**ROWS, "steps": ahead}), 0).plans_ahead


def test_missing_steps_are_refused():
    with pytest.raises(ReplayRefused, match="engine 0 cannot be re-run: steps of it are missing from the trace"):
        Recorded(Told(**{**ROWS, "steps": ROWS["steps"][1:]}), 0)


@pytest.mark.parametrize(("engine", "refused"), [(0, True), (None, True), (1, False)])
def test_what_nobody_knows_whose_it_was_may_have_been_its_own(engine, refused):
    told = Told(**ROWS)
    told._losses = [Loss(engine, 1, 1, "damaged", {"tokens": 3})]
    with pytest.raises(ReplayRefused, match="steps of it are missing") if refused else nullcontext():
        Recorded(told, 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"requests": [request(0, 10, lora="a")]}, "requests of an adapter"),
        ({"requests": [request(0, 10, num_mm_features=1)]}, "images or audio"),
        ({"requests": [request(0, 10, prompt_token_ids=[])]}, "prompts without token ids"),
        ({"scheduled": [part(0, 0, 3, 0, NEW, drafts=2)]}, "speculative decoding"),
        (
            {"requests": [request(0, 10, sampling_params='{"structured_outputs": {"json": "{}"}, "logit_bias": {}}')]},
            "the sampling parameter structured_outputs",
        ),
    ],
)
def test_what_cannot_be_forced_is_named(changes, reason):
    assert cannot_force(Recorded(Told(**{**ROWS, **changes}), 0)) == reason


@pytest.mark.parametrize(
    ("where", "changes", "reason"),
    [
        ("scheduler_config", {"policy": "priority"}, "requests by priority"),
        ("parallel_config", {"tensor_parallel_size": 2}, "several workers"),
        ("model_config", {"logits_processors": ["a:B"]}, "logits processors of the job's own"),
        ("kv_transfer_config", {"kv_connector": "x"}, "KV from elsewhere"),
    ],
)
def test_so_is_an_engine_that_cannot_be(where, changes, reason):
    recorded = Recorded(Told(**ROWS), 0)
    recorded.config["vllm"] = {**VLLM, where: {**VLLM.get(where, {}), **changes}}
    assert cannot_force(recorded) == reason
    recorded.config.clear()
    assert cannot_force(recorded) == "what the engine was set to is not in the trace"


ENV = EngineEnv("v1", Path("/nowhere"), vllm_version="0.18.1")
ROLLOUTS = SimpleNamespace(rollouts=[SimpleNamespace(sequence=SimpleNamespace(engine=0), num_tokens=2)])


def run_told(rows, env=ENV):
    return run_again(Told(**rows), ROLLOUTS, env, {0: Path("/a")}, lambda version: version, show_progress=False)


@pytest.mark.parametrize(
    ("version", "rows", "reason"),
    [
        ("0.8.5", ROWS, "what the scheduler of generation v1 did, in vLLM 0.8.5, cannot be forced"),
        ("0.18.1", {**ROWS, "requests": [request(0, 10, lora="a")]}, "requests of an adapter cannot be forced"),
    ],
)
def test_an_engine_that_cannot_be_forced_is_not_started(version, rows, reason):
    reran = run_told(rows, replace(ENV, vllm_version=version))
    assert reran.values == {} and [own.stopped for own in reran.engines] == [{"composed": reason}]


def test_the_engine_is_made_as_the_recorded_one_was_and_must_come_out_so():
    assert engine_arguments(CONFIG, "/a", 40) == {
        **{"dtype": "bfloat16", "max_model_len": 64, "block_size": 16, "kv_cache_dtype": "auto", "model": "/a"},
        **{"enable_prefix_caching": True, "max_num_batched_tokens": 40, "max_num_seqs": 4},
        **{"num_gpu_blocks_override": 12, "skip_tokenizer_init": True, "async_scheduling": False},
    }
    expected = expected_settings(CONFIG)
    assert expected["vllm.model_config.dtype"] == "torch.bfloat16" and expected["hf_config.vocab_size"] == 9
    assert "hf_config.use_cache" not in expected and "vllm.scheduler_config.max_num_batched_tokens" not in expected


def test_only_variables_that_decide_on_numbers_are_taken_over():
    config = {"environment": {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_PLUGINS": "evil"}}
    worker = {"torch": {"num_threads": 3}, "device": {"type": "cpu"}}
    taken = environ_of("v0", config, worker)
    assert taken == {"VLLM_CPU_KVCACHE_SPACE": "2", "OMP_NUM_THREADS": "3"}
    assert environ_of("v1", config, worker) == {**taken, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def test_what_may_move_the_last_bits_is_told():
    there = {"torch": {"version": "2.10.0", "num_threads": 1}, "sampler": "a.Sampler"}
    here = {"torch": {"version": "2.10.0", "num_threads": 2, "new": 1}, "sampler": "a.Sampler"}
    told_more = {**there, "torch": {**there["torch"], "new": 1}}
    assert unlike(there, told_more, ("0.18.1", "0.18.1")) == []
    assert unlike(there, {"sampler": "b.Sampler"}, ("1", "1")) == ["sampler: a.Sampler recorded, b.Sampler here"]
    assert unlike(there, here, ("0.18.1", "0.32.0")) == [
        "vLLM 0.18.1 recorded, 0.32.0 here",
        "torch: num_threads 1 recorded, 2 here",
    ]


def test_tensors_that_are_not_what_the_engine_had_are_told():
    there = [{"weight_version": v, "tensor": name, "hash": h} for v, name, h in
             [(0, "norm", 5), (0, "packed", None), (1, "norm", 6), (1, "head", 7)]]  # fmt: skip
    here = {"/a": [["norm", 5], ["packed", 1]], "/b": [["norm", 8], ["head", 9]]}
    (told,) = other_weights(there, here, FOLDERS)
    assert told == "weight version 1: norm, head recorded with other values than the weights given"
