"""Two CPU workers with half of the model each: one engine in the trace, and a change of weights reaches its version."""

import json
from pathlib import Path

import pytest

from helpers.engine import job, record, run_cli

pytestmark = pytest.mark.engine


@pytest.mark.parametrize("engine", ["v0", "v1", "latest"])
def test_two_workers_are_one_engine(engine: str, tiny_model: Path, tmp_path: Path) -> None:
    command = job("tensor_parallel.py", tiny_model, tmp_path / "view.jsonl")
    trace = record(engine, tmp_path / "trace.arrow", command, "--logprobs", "both")
    done = run_cli("doctor", tmp_path / "trace.arrow", "--completions", tmp_path / "view.jsonl", "--json")
    facts = json.loads(done.stdout)
    assert facts["violations"] == [] and facts["excused"] == [] and facts["completions"] == 6
    assert trace.complete
    (row,) = trace.engines()
    assert json.loads(row["config"])["vllm"]["parallel_config"]["tensor_parallel_size"] == 2
    (change,) = trace.table("weights").to_pylist()
    assert change["weight_version"] == 1 and change["method"] == "scale_norm"
    # V0's other workers are asked nothing: they wait in a loop while requests run
    ranks = [0] if engine == "v0" else [0, 1]
    assert [worker["rank"] for worker in trace.table("workers").to_pylist()] == ranks
    assert {row["rank"] for row in trace.table("fingerprints").to_pylist()} == set(ranks)
    assert change["num_changed"] == len(ranks)  # the norm of each
    tokens = trace.table("tokens").to_pylist()
    # the values come from one of the workers
    own = "processed_logprob" if engine == "v0" else "raw_logprob"
    assert all(t["raw_logprob"] is not None and t["processed_logprob"] is not None for t in tokens)
    assert all(t[own] == t["rollout_logprob"] for t in tokens)
    # the job changes them between its first three requests and the others
    assert all(token["weight_version"] == (token["request"] >= 3) for token in tokens)
    assert {token["weight_version"] for token in tokens} == {0, 1}
    first = min(token["engine_step"] for token in tokens if token["request"] >= 3)
    assert change["engine_step"] == first
