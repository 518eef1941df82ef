"""vLLM 0.8.5's V0 engine: the trace holds what the client of that run received, and the run is as without it."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.engine import EXAMPLES, engine_environ, record, run_cli
from helpers.traced import OneEngine, assert_alternatives, completions, numbers, prompts
from tracekit.engines.env import EngineEnv
from tracekit.replay.runner import replay
from tracekit.tables import ACCEPTED, NEW, PARTIAL, PREEMPTED, PREFILL, RESUMED
from tracekit.trace.reader import Trace

pytestmark = pytest.mark.engine

PROMPTS = "prompt logprobs"  # their key in the view
PREEMPTING, AWKWARD = 0, 1  # engines that share a process


@pytest.fixture(scope="module")
def recorded(v0_recorded: tuple[Path, Trace]) -> Any:
    folder, trace = v0_recorded
    view = json.loads((folder / "view.json").read_text())
    del view[PROMPTS]
    return OneEngine(trace, AWKWARD), view


def rows_of(trace: OneEngine, table: str, name: str) -> list[dict[str, Any]]:
    return [row for row in trace.table(table).to_pylist() if row["request"] == numbers(trace)[name]]


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
            if name == "unasked":
                assert client["logprobs"] == [] and engine["logprobs"] == ["nan"] * num_tokens
            else:
                assert engine["logprobs"][:num_tokens] == client["logprobs"], name
            surplus = len(engine["token_ids"]) - num_tokens
            if name == "abort":
                assert engine["reason"] == "abort" and surplus >= 0
            else:
                assert surplus == 0 and engine["reason"] == client["finish_reason"], name


def test_prompt_logprobs_are_what_the_client_received_after_temperature_and_truncation(
    recorded: Any, v0_recorded: tuple[Path, Trace]
) -> None:
    trace, _ = recorded
    names = {number: name for name, number in numbers(trace).items()}
    found = {names[number]: rows for (_, number), rows in prompts(trace).items()}
    assert found == json.loads((v0_recorded[0] / "view.json").read_text())[PROMPTS]
    assert {name: len(rows) for name, rows in found.items()} == {"scored": 150, "scored-final": 20}
    assert len([s for s in rows_of(trace, "scheduled", "scored") if s["flags"] & PREFILL]) > 2
    # V0 cuts a nucleus out of them too
    assert any(logprob == "-inf" for rows in found.values() for at in rows[1:] for logprob, _ in at.values())


def test_alternatives_are_what_the_client_received(recorded: Any) -> None:
    assert_alternatives(*recorded)


def test_positions_have_no_holes_and_finishes_count_the_tokens(recorded: Any) -> None:
    trace, _ = recorded
    finishes = {f["request"]: f for f in trace.table("finishes").to_pylist()}
    tokens = trace.table("tokens").to_pylist()
    for request in trace.table("requests").to_pylist():
        own = [t for t in tokens if t["request"] == request["request"] and t["flags"] & ACCEPTED]
        first, finish = len(request["prompt_token_ids"]), finishes[request["request"]]
        assert [t["position"] for t in own] == list(range(first, first + len(own)))
        assert finish["num_output_tokens"] == len(own)
        if finish["reason"] != "abort":
            assert finish["engine_step"] == own[-1]["engine_step"]


def test_n_completions_of_one_prompt(recorded: Any) -> None:
    trace, _ = recorded
    rows = [r for r in trace.table("requests").to_pylist() if r["external_id"] == "many"]
    assert [(r["index"], r["parent_id"]) for r in rows] == [(0, "many"), (1, "many"), (2, "many")]
    assert len({r["request_id"] for r in rows}) == 3
    single = trace.table("requests").to_pylist()[0]
    assert single["external_id"] == single["request_id"] and single["parent_id"] is None


def test_a_long_prompt_is_prefilled_in_chunks_that_sample_nothing(recorded: Any) -> None:
    trace, _ = recorded
    prefill = [s for s in rows_of(trace, "scheduled", "long") if s["flags"] & PREFILL]
    assert sum(s["num_tokens"] for s in prefill) == 300 and len(prefill) > 4
    assert prefill[0]["flags"] & NEW and all(s["flags"] & PARTIAL for s in prefill[:-1])
    assert not prefill[-1]["flags"] & PARTIAL
    assert len({s["num_requests"] for s in trace.table("steps").to_pylist()}) > 2


@pytest.mark.parametrize(("name", "num_prompt", "num_cached"), [("cached", 300, 288), ("cached-whole", 288, 287)])
def test_tokens_of_a_prefix_hit_are_not_counted_as_computed(
    recorded: Any, name: str, num_prompt: int, num_cached: int
) -> None:
    trace, _ = recorded
    prefill = [s for s in rows_of(trace, "scheduled", name) if s["flags"] & PREFILL]
    assert prefill[0]["num_computed"] == num_cached
    assert sum(s["num_tokens"] for s in prefill) == num_prompt - num_cached


def check_steps(trace: Trace | OneEngine) -> None:
    """Each step accounts for its requests and tokens, and each request's tokens are computed one after another."""
    tokens = trace.table("tokens").to_pylist()
    scheduled = trace.table("scheduled").to_pylist()
    steps = trace.table("steps").to_pylist()
    assert [s["engine_step"] for s in steps] == list(range(len(steps)))
    for step in steps:
        own = [s for s in scheduled if s["engine_step"] == step["engine_step"] and not s["flags"] & PREEMPTED]
        assert len(own) == step["num_requests"] == len({s["request"] for s in own})
        assert sum(s["num_tokens"] for s in own) == step["num_scheduled_tokens"]
        sampling = {s["request"] for s in own if not s["flags"] & PARTIAL}
        assert sampling == {t["request"] for t in tokens if t["engine_step"] == step["engine_step"]}
        assert step["output_ns"] > step["time_ns"]
        assert 0 < step["kv_usage"] <= 1
    end: dict[int, int] = {}
    for row in scheduled:
        if row["flags"] & PREEMPTED:
            end[row["request"]] = 0
        else:
            assert row["num_tokens"] > 0
            assert row["num_computed"] == end.get(row["request"], 0) or row["flags"] & (NEW | RESUMED)
            end[row["request"]] = row["num_computed"] + row["num_tokens"]


def test_each_step_accounts_for_its_requests_and_tokens(recorded: Any) -> None:
    check_steps(recorded[0])


def test_parameters_that_v0_turns_into_functions_are_read_back(recorded: Any) -> None:
    trace, _ = recorded
    params = {r["external_id"]: json.loads(r["sampling_params"]) for r in trace.table("requests").to_pylist()}
    assert params["biased"]["logit_bias"] == {"28": 100.0} and params["biased"]["logits_processors"] is None
    assert {t["token_id"] for t in rows_of(trace, "tokens", "biased")} == {28}
    assert params["stream"]["temperature"] == 0.7 and params["stream"]["top_p"] == 0.9


def test_the_engine_row_says_what_the_numbers_mean(recorded: Any) -> None:
    (engine,) = recorded[0].engines()
    config = json.loads(engine["config"])
    assert engine["kind"] == "v0" and engine["logprobs_mode"] == "processed_logprobs"
    assert engine["engine_version"].startswith("0.8.5")
    assert config["vllm"]["cache_config"]["enable_prefix_caching"] is True
    assert config["vllm"]["scheduler_config"]["max_num_batched_tokens"] == 64
    assert config["num_gpu_blocks"] > 0


def test_an_abort_is_in_control(recorded: Any) -> None:
    control = [c for c in recorded[0].table("control").to_pylist() if c["name"] == "abort_request"]
    assert control and all("abort" in c["arguments"] for c in control)


@pytest.fixture(scope="module")
def preempted(v0_recorded: tuple[Path, Trace]) -> Any:
    """The trace of a seeded job with too few KV blocks and weights that change, its tokens, and those without us."""
    folder, trace = v0_recorded
    views = [json.loads((folder / name).read_text()) for name in ("preempted.json", "without.json")]
    return OneEngine(trace, PREEMPTING), *views


def test_a_seeded_run_samples_the_same_with_and_without_the_recorder(preempted: Any) -> None:
    _, view, without = preempted
    assert view == without


def test_preempted_requests_are_recomputed_and_nothing_is_counted_twice(preempted: Any) -> None:
    trace, view, _ = preempted
    assert trace.complete
    check_steps(trace)
    scheduled = trace.table("scheduled").to_pylist()
    victims = [s for s in scheduled if s["flags"] & PREEMPTED]
    resumed = [s for s in scheduled if s["flags"] & RESUMED]
    assert victims and len(victims) == len(resumed)
    for row in resumed:
        # all there is of the request, its own tokens included, is computed again
        assert row["flags"] & PREFILL and row["num_computed"] == 0 and row["num_tokens"] > 100
    found = completions(trace)
    for name, client in view["requests"].items():
        assert found[name, "0"]["token_ids"] == client["token_ids"]
        assert found[name, "0"]["logprobs"] == client["logprobs"]
        first = len(found[name, "0"]["prompt"])
        assert found[name, "0"]["positions"] == list(range(first, first + len(client["token_ids"])))


def test_each_token_has_the_weights_that_computed_it(preempted: Any) -> None:
    trace, view, _ = preempted
    weights = trace.table("weights").to_pylist()
    assert [(w["weight_version"], w["method"], w["num_changed"]) for w in weights] == [
        (1, "scale_norm", 2),
        (2, "load_weights", 1),
        (3, "apply_model", 1),
        (4, "direct access", 1),  # written between two runs
    ]
    assert json.loads(weights[1]["arguments"])["calls"] == 2
    changed = view["changed_after"]  # steps that the job itself counted
    assert [w["engine_step"] for w in weights] == changed
    for table in ("tokens", "steps"):
        for row in trace.table(table).to_pylist():
            assert row["weight_version"] == sum(step <= row["engine_step"] for step in changed)
    (reset,) = (c for c in trace.table("control").to_pylist() if c["name"] == "reset_prefix_cache")
    assert reset["answer"] == "true"


def test_replay_scores_over_the_kv_that_each_rollout_had_and_finds_nothing(
    v0_recorded: tuple[Path, Trace], tiny_model: Path, tmp_path: Path
) -> None:
    trace = v0_recorded[1].only(PREEMPTING)
    folders = {}
    for version, norm in enumerate((None, 1.01, 1.02, 1.02 * 0.99)):
        folders[version] = shutil.copytree(tiny_model, tmp_path / str(version))
        tensors = load_file(folders[version] / "model.safetensors")
        own = tensors["model.norm.weight"].float()
        if norm is not None:
            tensors["model.norm.weight"] = own * norm if version == 1 else torch.full(own.shape, norm)
            tensors["model.layers.0.input_layernorm.weight"] = tensors["model.layers.0.input_layernorm.weight"] * 1.5
        save_file(tensors, folders[version] / "model.safetensors", {"format": "pt"})
    found = replay(trace, folders[0], weights=folders, dtype="float32").result
    assert (found.verdict.layer, found.verdict.semantic.kind) == ("none", "processed"), found.verdict.cause
    # those that were thrown out computed theirs anew, with the newer weights; the others kept it
    kv = {other.name: other for other in found.verdict.kv}
    for other in (kv["recomputed"], kv["kept"]):
        assert other.num_rollouts and other.num_recorded_better == other.num_rollouts and other.median_nats > 5
        assert other.d_abs_mean_recorded < 1e-4 < 1e-2 < other.d_abs_mean


def test_the_driver_tells_what_it_is_and_its_weights(preempted: Any) -> None:
    trace, _, _ = preempted
    (worker,) = trace.table("workers").to_pylist()
    config = json.loads(worker["config"])
    assert config["model_runner_version"] == "v0" and config["head"]["dtype"] == "float32"
    assert config["attention"] == [[{"backend": "TORCH_SDPA"}]]
    rows = trace.table("fingerprints").to_pylist()
    assert {row["weight_version"] for row in rows} == {0, 1, 2, 3, 4} and None not in {row["hash"] for row in rows}
    norm = {row["weight_version"]: row["hash"] for row in rows if row["tensor"] == "model.norm.weight"}
    assert len(set(norm.values())) == 5
    done = run_cli("doctor", trace.path)
    assert done.returncode == 0, done.stdout


def test_the_api_servers_engine_process(tiny_model: Path, tmp_path: Path) -> None:
    trace = record("v0", tmp_path / "trace.arrow", ["python", EXAMPLES / "serve_and_ask.py", tiny_model])
    (engine,) = trace.engines()
    assert engine["kind"] == "v0"
    assert trace.complete and trace.table("tokens").num_rows > 0
    assert trace.table("finishes").num_rows == trace.table("requests").num_rows > 0
    check_steps(trace)


def test_the_v1_engine_of_this_vllm_is_named_and_left_alone(v0_env: EngineEnv) -> None:
    program = (
        "import tracekit.recorder.plugin as p; p.register(); import vllm.engine.llm_engine as e; print(e.LLMEngine)"
    )
    environ = engine_environ(v0_env, TRACEKIT_DAEMON="unix:/nobody.sock", VLLM_USE_V1="1")
    done = subprocess.run([str(v0_env.python), "-c", program], env=environ, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "vllm.v1.engine.llm_engine" in done.stdout
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("tracekit: "))
    assert "is not supported (it lacks the V0 engine, which VLLM_USE_V1=0 chooses)" in line
    assert line.endswith("recording is off, the engine is untouched")
