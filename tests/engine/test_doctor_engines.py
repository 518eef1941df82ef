"""Doctor and lint on what real engines recorded: hits, a reload, a pause, preemptions, children and an abort."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.engine import job, record, run_cli
from helpers.traced import prompts
from tracekit.jobs import rollout
from tracekit.tables import PARTIAL, PREEMPTED, RESUMED
from tracekit.trace.reader import open_trace

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=["v1", "latest"])
def recorded(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"doctor-{request.param}")
    record(request.param, folder / "trace.arrow", job("stale_hits.py", tiny_model, folder / "view.jsonl"))
    return folder


def test_what_an_engine_recorded_is_sound_and_is_what_the_client_received(recorded: Path) -> None:
    done = run_cli("doctor", recorded / "trace.arrow", "--completions", recorded / "view.jsonl", "--json")
    facts = json.loads(done.stdout)
    assert facts["violations"] == [] and facts["excused"] == [] and facts["completions"] == 19
    assert done.returncode == 0
    flags = open_trace(recorded / "trace.arrow").table("scheduled").column("flags").to_numpy()
    assert (flags & PREEMPTED).any() and (flags & RESUMED).any()


def test_one_changed_bit_of_the_clients_view_is_found(recorded: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (recorded / "view.jsonl").read_text().splitlines()]
    rows[4]["logprobs"][7] = float(np.nextafter(np.float32(rows[4]["logprobs"][7]), np.float32(-9)))
    (tmp_path / "view.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_cli("doctor", recorded / "trace.arrow", "--completions", tmp_path / "view.jsonl")
    assert done.returncode == 1
    assert f"{rows[4]['request_id']!r}: the logprob of output token 7" in done.stdout


def test_prompt_logprobs_of_chunks_and_of_requests_that_were_preempted_are_recorded_once(recorded: Path) -> None:
    trace = open_trace(recorded / "trace.arrow")
    view = [json.loads(line) for line in (recorded / "view.jsonl").read_text().splitlines()]
    seen = {(row["request_id"], row["index"]): row["prompt_logprobs"] for row in view if row.get("prompt_logprobs")}
    rows = trace.table("requests").to_pylist()
    names = {r["request"]: (r["external_id"], r["index"]) for r in rows}
    found = {
        names[number]: [at and float.fromhex(next(iter(at.values()))[0]) for at in of_prompt]
        for (_, number), of_prompt in prompts(trace).items()
    }
    assert found == seen and len(seen) == 7  # five of the many, two children
    scheduled = [row for row in trace.table("scheduled").to_pylist() if names[row["request"]] in seen]
    assert any(row["flags"] & PARTIAL for row in scheduled) and any(row["flags"] & RESUMED for row in scheduled)


def test_one_changed_bit_of_a_prompts_logprobs_is_found(recorded: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (recorded / "view.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row.get("prompt_logprobs"))
    row["prompt_logprobs"][7] = float(np.nextafter(np.float32(row["prompt_logprobs"][7]), np.float32(-9)))
    (tmp_path / "view.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run_cli("doctor", recorded / "trace.arrow", "--completions", tmp_path / "view.jsonl")
    assert done.returncode == 1
    assert f"{row['request_id']!r}: the logprob of prompt token 7 is not the client's" in done.stdout


def test_lint_names_the_hits_on_blocks_of_the_old_weights(recorded: Path) -> None:
    done = run_cli("lint", recorded / "trace.arrow", "--json")
    assert done.returncode == 4
    found = {one["id"]: one["detail"] for one in json.loads(done.stdout)["fired"]}
    trace = open_trace(recorded / "trace.arrow")
    numbers = {r["external_id"]: r["request"] for r in trace.table("requests").to_pylist()}
    blocks: dict[int, list[Any]] = {}
    for row in trace.table("cache").to_pylist():
        blocks.setdefault(row["request"], []).append((row["min_weight_version"], row["max_weight_version"]))
    of = {name: blocks.get(number) for name, number in numbers.items()}
    assert of["first"] is of["cold"] is of["half"] is None
    assert of["warm"] == of["stale"] == [(0, 0), (0, 0)]
    # half of the second block was computed before the pause, half of it after
    assert of["mixed"] == [(1, 1), (1, 2)]
    assert found["stale-prefix-hits"].startswith(f"2 hits: request {numbers['stale']} in engine step")
    assert "2 of 2 blocks hold keys and values of weight version 0, sampled under 1" in found["stale-prefix-hits"]
    assert f"request {numbers['mixed']} in engine step" in found["stale-prefix-hits"]
    assert "2 of 2 blocks hold keys and values of weight version 1, sampled under 2" in found["stale-prefix-hits"]
    assert found["raw-logprobs-with-temperature"] == "19 of 19 requests: temperature 0.7 (the client)"
    assert {"pause-keep-recomputes", "preemptions", "one-sided-fp32-head", "in-flight-update"} <= set(found)
    assert not {"deleted-token", "pause-keep-deletes-a-token"} & set(found)


@pytest.fixture(scope="module", params=["v0", "v1"])
def prompted(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tracekit record --prompts` leaves: prompts that preempt each other, and one of every kind."""
    folder = tmp_path_factory.mktemp(f"prompts-{request.param}")
    shared = [i % 900 + 300 for i in range(72)]
    prompts: list[dict[str, Any]] = [
        {"prompt_token_ids": [i + 5, *shared], "max_tokens": 90, "ignore_eos": True} for i in range(8)
    ]
    prompts += [{"prompt_token_ids": shared[:20], "n": 2, "max_tokens": 8}]
    prompts += [{"prompt_token_ids": shared[:20], "stop": ["e", "a"], "max_tokens": 60}]
    prompts += [{"prompt": "Hello", "n": 2, "seed": 1}]
    prompts += [{"messages": [{"role": "user", "content": "Hi"}], "logit_bias": {"28": 100.0}}]
    prompts += [{"prompt_token_ids": [5, 6, 7], "temperature": 0}]
    (folder / "p.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    small = ("block_size=32", "num_gpu_blocks_override=24", "max_model_len=256", "enforce_eager=true", "dtype=float32")
    arguments = [word for pair in small for word in ("--engine-arg", pair)]
    arguments += ["--sampling", "temperature=0.7", "--sampling", "max_tokens=6"]
    into = ("--completions", folder / "view.jsonl", "-o", folder / "t.arrow")
    what = ("--model", tiny_model, "--prompts", folder / "p.jsonl")
    done = run_cli("record", "--engine", request.param, *what, *arguments, *into)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


def test_prompts_that_preempt_each_other_are_sound_beside_the_completions(prompted: Path) -> None:
    done = run_cli("doctor", prompted / "t.arrow", "--completions", prompted / "view.jsonl")
    assert done.returncode == 0 and "15 completions compared" in done.stdout, done.stdout
    flags = open_trace(prompted / "t.arrow").table("scheduled").column("flags").to_numpy()
    assert (flags & PREEMPTED).any()


def test_the_driver_writes_the_clients_view(prompted: Path) -> None:
    rows = rollout.read_view(prompted / "view.jsonl")[11:]
    assert [(row["request"], row["index"]) for row in rows] == [(10, 0), (10, 1), (11, 0), (12, 0)]
    assert rows[3]["prompt_token_ids"] == [5, 6, 7]
    assert rows[2]["token_ids"] == [28] * 6
    for row in rows:
        assert row["finish_reason"] in ("length", "stop")
        assert len(row["logprobs"]) == len(row["token_ids"]) <= 6
