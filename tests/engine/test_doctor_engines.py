"""Doctor and lint on what real engines recorded: hits, a reload, a pause, preemptions, children and an abort."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.engine import JOBS, run_cli
from tracekit.tables import PREEMPTED, RESUMED
from tracekit.trace.reader import open_trace

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=["v1", "latest"])
def recorded(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(f"doctor-{request.param}")
    job = ("python", JOBS / "stale_hits.py", tiny_model, folder / "view.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        patch.setenv("TRACEKIT_STRICT", "1")
        done = run_cli("record", "--engine", request.param, "-o", folder / "trace.arrow", "--", *job)
    assert done.returncode == 0, done.stderr[-4000:]
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


@pytest.mark.parametrize("engine", ["v0", "v1"])
def test_prompts_that_preempt_each_other_are_sound_beside_the_completions(
    engine: str, tiny_model: Path, tmp_path: Path
) -> None:
    shared = [i % 900 + 300 for i in range(72)]
    prompts = [{"prompt_token_ids": [i + 5, *shared], "max_tokens": 90, "ignore_eos": True} for i in range(8)]
    prompts += [{"prompt_token_ids": shared[:20], "n": 2, "max_tokens": 8}]
    prompts += [{"prompt_token_ids": shared[:20], "stop": ["e", "a"], "max_tokens": 60}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    small = ("block_size=32", "num_gpu_blocks_override=24", "max_model_len=256", "enforce_eager=true")
    arguments = [word for pair in small for word in ("--engine-arg", pair)]
    into = ("--completions", tmp_path / "view.jsonl", "-o", tmp_path / "t.arrow")
    what = ("--model", tiny_model, "--prompts", tmp_path / "p.jsonl", "--sampling", "temperature=0.7")
    done = run_cli("record", "--engine", engine, *what, *arguments, *into)
    assert done.returncode == 0, done.stderr[-4000:]
    done = run_cli("doctor", tmp_path / "t.arrow", "--completions", tmp_path / "view.jsonl")
    assert done.returncode == 0 and "11 completions compared" in done.stdout, done.stdout
    flags = open_trace(tmp_path / "t.arrow").table("scheduled").column("flags").to_numpy()
    assert (flags & PREEMPTED).any()
