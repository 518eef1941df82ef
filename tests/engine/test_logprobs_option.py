"""TRACEKIT_LOGPROBS=both: every token has both values, those of vLLM to the bit, and only the trace sees them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.engine import plain, record, run_cli, then
from helpers.traced import prompts
from tracekit.recorder.settings import Options
from tracekit.rpc.credentials import Access
from tracekit.trace.reader import Trace

pytestmark = pytest.mark.engine

JOB = {"v1": "all_logprobs.py", "latest": "all_logprobs.py", "v0": "all_logprobs_v0.py"}


@pytest.fixture(scope="module", params=["v1", "latest", "v0"])
def runs(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The same job without a recorder, and recorded with both logprobs."""
    folder = tmp_path_factory.mktemp(request.param)
    without, recorded, name = folder / "without.json", folder / "recorded.json", JOB[request.param]
    command = plain(name, tiny_model, without) + then(name, tiny_model, recorded)
    trace = record(request.param, folder / "trace.arrow", command, "--logprobs", "both")
    return trace, json.loads(without.read_text()), json.loads(recorded.read_text())


def tokens_of(trace: Trace) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Token rows by mode of the engine and by the engine's own request id, in order."""
    modes = {e["engine"]: e["logprobs_mode"] for e in trace.engines()}
    names = {(r["engine"], r["request"]): r["request_id"] for r in trace.table("requests").to_pylist()}
    found: dict[str, dict[str, list[dict[str, Any]]]] = {mode: {} for mode in modes.values()}
    for row in sorted(trace.table("tokens").to_pylist(), key=lambda t: (t["engine"], t["request"], t["position"])):
        name = names[row["engine"], row["request"]]
        found[modes[row["engine"]]].setdefault(name, []).append(row)
    return found


def bits(value: float) -> str:
    return float(np.float32(value)).hex()


def test_the_client_sees_what_it_sees_without_a_recorder(runs: Any) -> None:
    _, without, recorded = runs
    for mode, run in recorded.items():
        assert run["client"] == without[mode]["client"], mode
        seen = run["client"]
        assert any(c["logprobs"] is None for c in seen) and any(c["logprobs"] for c in seen)


def test_both_values_of_every_token_are_vllms_own(runs: Any) -> None:
    trace, _, recorded = runs
    found = tokens_of(trace)
    assert trace.complete and set(found) == set(recorded)
    differing = 0
    for mode, run in recorded.items():
        assert set(found[mode]) == set(run["truth"])
        for name, truth in run["truth"].items():
            rows = found[mode][name]
            assert [[r["token_id"], bits(r["raw_logprob"]), bits(r["processed_logprob"])] for r in rows] == truth
            own = "raw_logprob" if mode == "raw_logprobs" else "processed_logprob"
            assert [bits(r["rollout_logprob"]) for r in rows] == [bits(r[own]) for r in rows]
            differing += sum(raw != processed for _, raw, processed in truth)
    assert differing > 30  # else they would be easy to mistake for each other


def test_prompt_logprobs_are_what_the_client_received_and_raw_from_v1(runs: Any) -> None:
    trace, _, recorded = runs
    modes = {e["engine"]: e["logprobs_mode"] for e in trace.engines()}
    names = {(r["engine"], r["request"]): r["external_id"] for r in trace.table("requests").to_pylist()}
    found: dict[str, dict[str, Any]] = {mode: {} for mode in modes.values()}
    for key, rows in prompts(trace).items():
        found[modes[key[0]]][names[key]] = rows
    for mode, run in recorded.items():
        seen = {c["id"]: c["prompt"] for c in run["client"] if c["prompt"]}
        assert found[mode] == seen and len(seen) == 3
    # each prompt is scored alone by its own model: no parameter of the request moves it, and no mode
    assert len({json.dumps(by_name, sort_keys=True) for by_name in found.values()}) == 1


def test_the_trace_says_what_was_asked_of_the_recorder(runs: Any) -> None:
    trace, _, _ = runs
    for engine in trace.engines():
        asked = Options("unix:d.sock", Access(), logprobs="both", lossless=False)
        assert json.loads(engine["config"])["recorder"] == asked.told()


def test_the_trace_is_sound(runs: Any) -> None:
    trace, _, _ = runs
    done = run_cli("doctor", trace.path)
    assert done.returncode == 0, done.stdout
