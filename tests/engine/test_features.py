"""A mixture of experts, LoRA adapters re-pointed under one name, and n-gram speculation, in one process.

The truth is what the client received and what vLLM counted itself.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from helpers.engine import job, record, run_cli
from helpers.odd_models import write_adapter, write_tiny_moe
from helpers.tiny_model import write_tiny_model
from tracekit.tables import NEW
from tracekit.trace.reader import Trace

pytestmark = pytest.mark.engine

EXPERTS, ADAPTERS, DRAFTS = range(3)  # the job's engines, in the order in which it builds them


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "tiny": write_tiny_model(folder / "tiny"),
        # its next token is mostly one that was there: n-grams are good drafts
        "tied": write_tiny_model(folder / "tied", tie_embeddings=True),
        "moe": write_tiny_moe(folder / "moe"),
        "adapter-a": write_adapter(folder / "a", 1),
        "adapter-b": write_adapter(folder / "b", 2),
    }


@pytest.fixture(scope="module", params=["v1", "latest"])
def recorded(request: pytest.FixtureRequest, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(f"features-{request.param}")
    for name, path in models.items():
        (folder / name).symlink_to(path)
    trace = record(request.param, folder / "trace.arrow", job("features.py", folder), "--logprobs", "both")
    return request.param, folder, trace, json.loads((folder / "truth.json").read_text())


def of_engine(trace: Trace, table: str, engine: int) -> list[dict[str, Any]]:
    return [row for row in trace.table(table).to_pylist() if row["engine"] == engine]


def test_it_is_what_the_client_received(recorded: Any) -> None:
    _, folder, trace, _ = recorded
    done = run_cli("doctor", folder / "trace.arrow", "--completions", folder / "view.jsonl", "--json")
    facts = json.loads(done.stdout)
    assert facts["violations"] == [] and facts["excused"] == [] and facts["completions"] == 13
    assert trace.complete
    configs = [json.loads(engine["config"]) for engine in trace.engines()]
    assert [config["hf_config"].get("num_experts") for config in configs] == [8, None, None]
    tokens = Counter(token["engine"] for token in trace.table("tokens").to_pylist())
    assert tokens[EXPERTS] == 4 * 32 and tokens[ADAPTERS] == 5 * 24


def test_an_adapter_that_moved_under_its_name_reuses_the_old_ones_blocks_in_v1(recorded: Any) -> None:
    engine, folder, trace, truth = recorded
    requests = of_engine(trace, "requests", ADAPTERS)
    a, b = str(folder / "adapter-a"), str(folder / "adapter-b")
    assert [(r["external_id"], r["lora"], r["lora_id"], r["lora_path"]) for r in requests] == [
        ("base", None, None, None),
        ("x", "x", 1, a),
        ("x-again", "x", 1, a),
        ("x-moved", "x", 2, b),
        ("y", "y", 3, b),
    ]
    names = {r["request"]: r["external_id"] for r in requests}
    found = {
        names[r["request"]]: r["num_computed"] for r in of_engine(trace, "scheduled", ADAPTERS) if r["flags"] & NEW
    }
    assert found == truth["lora"]["cached"]
    # 0.18 ties a block to the adapter's name, 0.32 to its path as well
    assert found["x-again"] == 64 and found["x-moved"] == (64 if engine == "v1" else 0)
    fired = json.loads(run_cli("lint", folder / "trace.arrow", "--json").stdout)["fired"]
    said = [one["detail"] for one in fired if one["id"] == "lora-name-reused"]
    assert said == ([f"'x' was {a} (1), then {b} (2)"] if engine == "v1" else [])
    (said,) = (one["detail"] for one in fired if one["id"] == "adapter-on-some-requests")
    assert said == "4 of 5 requests name an adapter ('x', 'y'), the others do not"


def test_each_adapter_that_moves_is_a_row_of_weights(recorded: Any) -> None:
    _, folder, trace, _ = recorded
    rows = [row for row in of_engine(trace, "weights", ADAPTERS) if row["lora"] is not None]
    moved = [row for row in rows if row["lora"] == "x" and str(folder / "adapter-b") in row["arguments"]]
    assert len(moved) == 1
    requests = {r["external_id"]: r["request"] for r in of_engine(trace, "requests", ADAPTERS)}
    scheduled = of_engine(trace, "scheduled", ADAPTERS)
    first = min(row["engine_step"] for row in scheduled if row["request"] == requests["x-moved"])
    last = max(row["engine_step"] for row in scheduled if row["request"] == requests["x-again"])
    assert last < moved[0]["engine_step"] <= first


def test_drafts_are_what_vllm_counted_and_rejected_ones_are_no_tokens(recorded: Any) -> None:
    _, _, trace, truth = recorded
    scheduled = [row for row in of_engine(trace, "scheduled", DRAFTS) if row["num_draft"]]
    sampled = Counter((t["engine_step"], t["request"]) for t in of_engine(trace, "tokens", DRAFTS))
    drafted = sum(row["num_draft"] for row in scheduled)
    # each verification yields the accepted drafts and one token of the model's own
    accepted = sum(sampled[row["engine_step"], row["request"]] - 1 for row in scheduled)
    counted = truth["spec"]
    assert (len(scheduled), drafted) == (counted["num_drafts"], counted["num_draft_tokens"])
    assert accepted == counted["num_accepted_tokens"] and 0 < accepted < drafted


def test_both_logprobs_of_all_tokens_but_those_of_speculative_steps(recorded: Any) -> None:
    name, _, trace, _ = recorded
    drafted = {(row["engine"], row["engine_step"]) for row in trace.table("scheduled").to_pylist() if row["num_draft"]}
    assert {engine for engine, _ in drafted} == {DRAFTS}
    tokens = trace.table("tokens").to_pylist()
    assert all(token["raw_logprob"] == token["rollout_logprob"] for token in tokens)
    for token in tokens:
        # 0.32 verifies in every step of an engine that speculates, be there drafts or not
        verified = (token["engine"], token["engine_step"]) in drafted or (name, token["engine"]) == ("latest", DRAFTS)
        assert (token["processed_logprob"] is None) == verified
