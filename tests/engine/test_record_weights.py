"""Weights that change on every path in mid-generation, against what the worker read from them at each forward."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.engine import job, record, run_cli
from tracekit.recorder.vllm.recording import DIRECT
from tracekit.trace.reader import Trace

pytestmark = pytest.mark.engine

# method, and whether it changed weights; the CPU builds pack most away, so "not" is never known
ANYWHERE = [
    *[("watch_forwards", False), ("scale_norm", True), ("apply_model", True), ("reload_weights", True)],
    ("do_nothing", False),
]
IN_PROCESS = [("load_weights", True), (DIRECT, True)]


@pytest.fixture(scope="module", params=["v1", "latest"])
def recorded(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(f"weights-{request.param}")
    trace, view = folder / "trace.arrow", folder / "view.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
        if request.param == "v1":
            patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        recorded = record(request.param, trace, job("weight_paths.py", tiny_model, view))
    return request.param, recorded, json.loads(view.read_text()), trace


def changes(trace: Trace) -> list[dict[str, Any]]:
    return [row for row in trace.table("weights").to_pylist() if row["label"] is None]


def test_each_path_is_a_version_with_what_it_changed(recorded: Any) -> None:
    engine, trace, _, _ = recorded
    expected = [*ANYWHERE, *(IN_PROCESS if engine == "v1" else []), ("wake_up", False)]
    rows = changes(trace)
    assert [(row["method"], row["num_changed"] is not None) for row in rows] == expected
    assert [row["weight_version"] for row in rows] == list(range(1, len(rows) + 1))
    num_changed = {row["method"]: row["num_changed"] for row in rows}
    # the tiny model has two layers; the reload takes back what the two before it did
    assert [num_changed[name] for name in ("scale_norm", "apply_model", "reload_weights")] == [1, 2, 3]
    arguments = {row["method"]: json.loads(row["arguments"]) for row in rows}
    assert arguments["scale_norm"] == {"args": [1.5], "kwargs": {}}
    assert arguments["apply_model"]["args"] == ["scale_layers"]
    assert set(arguments["reload_weights"]["kwargs"]) == {"weights_path"}
    if engine == "v1":
        assert arguments["load_weights"]["calls"] == 2


def test_a_version_starts_at_the_very_token(recorded: Any) -> None:
    engine, trace, view, _ = recorded
    steps = trace.table("steps").to_pylist()
    assert len(steps) == len(view["log"])
    rows = {row["weight_version"]: row for row in changes(trace)}
    moved = [i for i, (a, b) in enumerate(zip(view["log"], view["log"][1:], strict=False), 1) if a[0] != b[0]]
    assert len(moved) == (5 if engine == "v1" else 3)
    assert moved == [row["engine_step"] for row in rows.values() if row["num_changed"]]
    numbers = {r["external_id"]: r["request"] for r in trace.table("requests").to_pylist()}
    tokens = {(t["request"], t["position"]): t for t in trace.table("tokens").to_pylist()}
    # internal ids of requests begin with the caller's
    forwards = {
        name: [i for i, (_, ids) in enumerate(view["log"]) if any(r[0] == name for r in ids)] for name in "abcde"
    }
    for name, token_ids in view["requests"].items():
        for index, (token_id, step) in enumerate(zip(token_ids, forwards[name], strict=True)):
            token = tokens[numbers[name], 20 + index]
            assert (token["token_id"], token["engine_step"]) == (token_id, step)
            assert token["weight_version"] == sum(row["engine_step"] <= step for row in rows.values())


def test_restored_weights_have_the_fingerprints_they_were_loaded_with(recorded: Any) -> None:
    _, trace, _, _ = recorded
    by_version: dict[int, dict[str, Any]] = {}
    for row in trace.table("fingerprints").to_pylist():
        by_version.setdefault(row["weight_version"], {})[row["tensor"]] = row["hash"]
    version = {row["method"]: row["weight_version"] for row in changes(trace)}
    loaded, unreadable = by_version[0], [name for name, digest in by_version[0].items() if digest is None]
    assert all(name.endswith("proj.weight") for name in unreadable) and len(unreadable) < len(loaded)
    assert by_version[version["reload_weights"]] == loaded == by_version[version["do_nothing"]]
    moved = {name for name in loaded if by_version[version["apply_model"]][name] != loaded[name]}
    assert moved == {"model.norm.weight", *(f"model.layers.{i}.input_layernorm.weight" for i in range(2))}
    assert set(by_version) == {0, *version.values()}


def test_the_callers_label_is_beside_the_version_it_names(recorded: Any) -> None:
    engine, trace, _, _ = recorded
    labels = [row for row in trace.table("weights").to_pylist() if row["label"] is not None]
    (version,) = [row["weight_version"] for row in changes(trace) if row["method"] == "reload_weights"]
    found = [(row["weight_version"], row["method"], row["label"]) for row in labels]
    assert found == ([(version, "set_weight_version", "step-7")] if engine == "latest" else [])


def test_what_only_the_worker_knows(recorded: Any) -> None:
    _, trace, _, _ = recorded
    (worker,) = trace.table("workers").to_pylist()
    config = json.loads(worker["config"])
    assert worker["rank"] == 0 and worker["pid"] > 0
    ((attention,),) = config["attention"]
    assert attention["backend"] == "CPU_ATTN" and attention["num_layers"] == 2 and attention["kv_dtype"] == "bfloat16"
    assert config["model_runner_version"] == "v1" and config["top_k_top_p"] == "forward_cpu"
    assert config["head"]["dtype"] == "bfloat16" and config["head"]["tied"] is False
    assert config["parameters"]["packed"] and config["cudagraph_mode"] == "NONE"
    assert config["torch"]["num_threads"] >= 1 and config["device"]["type"] == "cpu"


def test_it_is_sound(recorded: Any) -> None:
    done = run_cli("doctor", recorded[3])
    assert done.returncode == 0, done.stdout
