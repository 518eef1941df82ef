"""Weights that change under running requests, in sync and async scheduling, are found at the exact token.

The truth is the job's own: the weights that each forward read, and how far each request was when it did.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from helpers.browser import assert_opens
from helpers.engine import job, record, run_cli
from tracekit.replay.runner import replay
from tracekit.tables import ACCEPTED, DISCARDED, NEW, PREEMPTED, RESUMED
from tracekit.trace.reader import Trace

pytestmark = pytest.mark.engine

KINDS = {"sync": 0, "async": 1}  # the engines of the job's own process, in the order in which it builds them
PAUSED = 2  # AsyncLLM's, in a process of its own


# in an engine process, where vLLM imports everything anew, only what needs it
HOW = {"v1": "pause", "latest": "in-process"}


@pytest.fixture(scope="module", params=HOW)
def recorded(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(f"updates-{request.param}")
    command = job("updates.py", tiny_model, folder, HOW[request.param])
    trace = record(request.param, folder / "trace.arrow", command)
    return request.param, folder, trace, json.loads((folder / "truth.json").read_text())


SCALES = (1.0, 1.5, 1.125, 1.6875, 1.265625)  # of the norms that the job multiplies, by weight version


def scaled(model: Path, folder: Path, scale: float) -> Path:
    """The model as the job's engines have it."""
    shutil.copytree(model, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.norm.weight", "model.layers.0.input_layernorm.weight"):
        tensors[name] = tensors[name] * scale
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def view(folder: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (folder / "view.jsonl").read_text().splitlines()]
    return {row["request_id"]: row for row in rows}


def of_engine(trace: Trace, table: str, engine: int) -> list[dict[str, Any]]:
    return [row for row in trace.table(table).to_pylist() if row["engine"] == engine]


def output_of(trace: Trace, name: str) -> list[dict[str, Any]]:
    """The tokens of a request, discarded ones included, in the order in which they were sampled."""
    (request,) = (r for r in trace.table("requests").to_pylist() if r["external_id"] == name)
    own = [t for t in of_engine(trace, "tokens", request["engine"]) if t["request"] == request["request"]]
    return sorted(own, key=lambda t: t["engine_step"])


def deleted_tokens(folder: Path) -> dict[int, str]:
    """What lint says of deleted tokens, by engine."""
    fired = json.loads(run_cli("lint", folder / "trace.arrow", "--json").stdout)["fired"]
    return {int(one["where"].split()[1]): one["detail"] for one in fired if one["id"] == "deleted-token"}


def test_it_is_what_the_client_received_from_two_engines_of_one_process_and_one_beside(recorded: Any) -> None:
    engine, folder, trace, _ = recorded
    done = run_cli("doctor", folder / "trace.arrow", "--completions", folder / "view.jsonl", "--json")
    facts = json.loads(done.stdout)
    assert facts["violations"] == [] and facts["excused"] == [] and facts["completions"] == len(view(folder))
    assert trace.complete
    pids = [e["pid"] for e in trace.engines()]
    assert pids[0] == pids[1] and len(pids) == (3 if engine == "v1" else 2) and len({*pids[1:]}) == len(pids) - 1
    asynchronous = [json.loads(e["config"])["vllm"]["scheduler_config"]["async_scheduling"] for e in trace.engines()]
    assert asynchronous == [False, True, True][: len(pids)]
    assert all(isinstance(json.loads(e["config"])["generation_config"], dict) for e in trace.engines())


@pytest.mark.parametrize("kind", KINDS)
def test_each_token_has_the_weights_that_its_forward_used(recorded: Any, kind: str) -> None:
    _, _, trace, truth = recorded
    forwards = truth[kind]["forwards"]
    scales = list(dict.fromkeys(forward["scale"] for forward in forwards))
    assert scales == [1.0, 1.5, 1.125, 1.6875, 1.265625]
    names = {r["request"]: r["request_id"] for r in of_engine(trace, "requests", KINDS[kind])}
    tokens = of_engine(trace, "tokens", KINDS[kind])
    assert len(tokens) >= 14 * 40
    for token in tokens:
        if "drained" in names[token["request"]]:
            continue  # the engine of 0.18 is one token ahead of what its client has
        forward = forwards[token["engine_step"]]
        assert forward["ends"][names[token["request"]]] == token["position"]
        assert token["weight_version"] == scales.index(forward["scale"])
    starts = [[forward["scale"] for forward in forwards].index(scale) for scale in scales]
    assert [w["engine_step"] for w in of_engine(trace, "weights", KINDS[kind])] == starts[1:]


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_change_at_that_token_and_not_before(recorded: Any, kind: str) -> None:
    _, folder, trace, _ = recorded
    seen = view(folder)
    firsts = []
    for i in range(5):
        same, changed = (seen[f"{kind}-{run}-{i}"]["logprobs"] for run in ("same", "changed"))
        differs = [a != b for a, b in zip(same, changed, strict=True)].index(True)
        versions = [t["weight_version"] for t in output_of(trace, f"{kind}-changed-{i}")]
        assert versions == sorted(versions)  # a request that was out meanwhile goes from 0 to 2
        assert versions[differs] > 0 and not any(versions[:differs])
        firsts.append(differs)
    assert len(set(firsts)) > 1  # one change of the weights, other tokens of each rollout


def test_a_stamp_at_the_output_would_be_wrong_under_async_scheduling(recorded: Any) -> None:
    _, _, trace, truth = recorded
    wrong = {
        kind: [i for i, (f, at) in enumerate(zip(told["forwards"], told["taken"], strict=True)) if f["scale"] != at]
        for kind, told in ((kind, truth[kind]) for kind in KINDS)
    }
    assert wrong["sync"] == [] and {f["in_flight"] for f in truth["sync"]["forwards"]} == {0}
    in_flight = [f["in_flight"] for f in truth["async"]["forwards"]]
    assert max(in_flight) == 1 and sum(in_flight) > len(in_flight) // 2
    starts = [w["engine_step"] for w in of_engine(trace, "weights", KINDS["async"])]
    # one of the changes came between two requests
    assert set(wrong["async"]) < {step - 1 for step in starts} and len(wrong["async"]) == len(starts) - 1


def test_preempted_requests_come_back_in_both_schedulers(recorded: Any) -> None:
    _, _, trace, _ = recorded
    for engine in KINDS.values():
        scheduled = of_engine(trace, "scheduled", engine)
        out = {row["request"] for row in scheduled if row["flags"] & PREEMPTED}
        assert out and out <= {row["request"] for row in scheduled if row["flags"] & RESUMED}


def test_a_reset_under_running_requests_samples_what_was_in_flight_again(recorded: Any) -> None:
    _, folder, trace, _ = recorded
    seen = view(folder)
    for kind, engine in KINDS.items():
        for i in range(2):
            assert seen[f"{kind}-reset-{i}"]["token_ids"] == seen[f"{kind}-straight-{i}"]["token_ids"]
        resets = [c for c in of_engine(trace, "control", engine) if "true" in c["arguments"]]
        assert len(resets) == 1 + (kind == "async") and all(c["answer"] == "true" for c in resets)
    thrown = [[t for t in output_of(trace, f"async-reset-{i}") if t["flags"] == DISCARDED] for i in range(2)]
    assert all(len(tokens) == 1 for tokens in thrown)
    for i, (token,) in enumerate(thrown):
        again = [t for t in output_of(trace, f"async-reset-{i}") if t["position"] == token["position"]]
        assert [t["token_id"] for t in again] == [token["token_id"]] * 2 and again[1]["flags"] == ACCEPTED


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_of_a_hit_has_the_versions_that_the_memory_shows(recorded: Any, kind: str) -> None:
    _, _, trace, truth = recorded
    names = {r["request"]: r["request_id"] for r in of_engine(trace, "requests", KINDS[kind])}
    found: list[list[Any]] = []
    for row in of_engine(trace, "cache", KINDS[kind]):
        if row["block"] == 0:
            found.append([names[row["request"]], 0, [], []])
        found[-1][1] += row["num_tokens"]
        found[-1][2].append(row["block_id"])
        found[-1][3].append([row["min_weight_version"], row["max_weight_version"]])
    assert sorted(found) == sorted(truth[kind]["hits"])
    external = {r["request_id"]: r["external_id"] for r in of_engine(trace, "requests", KINDS[kind])}
    versions = {external[name].removeprefix(f"{kind}-"): own for name, _, _, own in found}
    assert versions["warm"] == [[2, 2]] * 2 and versions["stale"] == [[2, 2]] * 2
    assert versions["mixed"] == [[3, 3], [3, 4]] and versions["warm-again"] == [[4, 4]] * 2
    assert "cold" not in versions
    # a request that was out and back hits blocks that it computed itself
    assert {tuple(pair) for own in versions.values() for pair in own} > {(2, 2), (3, 3), (3, 4), (4, 4)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_client_is_told_of_as_many_cached_tokens(recorded: Any, kind: str) -> None:
    _, _, trace, truth = recorded
    new = [row for row in of_engine(trace, "scheduled", KINDS[kind]) if row["flags"] & NEW]
    names = {r["request"]: r["external_id"] for r in of_engine(trace, "requests", KINDS[kind])}
    told = {name: count for name, count in truth["cached"].items() if name.startswith(kind)}
    assert {names[row["request"]]: row["num_computed"] for row in new} == told


def test_lint_names_the_stale_hits_and_no_other(recorded: Any) -> None:
    _, folder, trace, truth = recorded
    fired = json.loads(run_cli("lint", folder / "trace.arrow", "--json").stdout)["fired"]
    says = {one["where"]: one["detail"] for one in fired if one["id"] == "stale-prefix-hits"}
    assert set(says) == {"engine 0", "engine 1"}
    for kind, engine in KINDS.items():
        numbers = {r["request_id"]: r["request"] for r in of_engine(trace, "requests", engine)}
        version = {s["engine_step"]: s["weight_version"] for s in of_engine(trace, "steps", engine)}
        began = {
            (row["request"], row["num_computed"]): version[row["engine_step"]]
            for row in of_engine(trace, "scheduled", engine)
            if row["flags"] & (NEW | RESUMED)
        }
        stale = [
            numbers[name]
            for name, count, _, own in truth[kind]["hits"]
            if min(oldest for oldest, _ in own) < began[numbers[name], count]
        ]
        assert says[f"engine {engine}"].startswith(f"{len(stale)} hits: ") and len(stale) >= 2
        assert all(f"request {number} in engine step" in says[f"engine {engine}"] for number in stale[:5])


PAUSES = {1: ("async-straight", "async-drained"), PAUSED: ("straight", "paused")}


def test_a_pause_that_clears_the_cache_deletes_a_token_in_v1_and_the_trace_says_so(recorded: Any) -> None:
    engine, folder, trace, _ = recorded
    seen, deleted = view(folder), deleted_tokens(folder)
    assert set(deleted) == (set(PAUSES) if engine == "v1" else set())
    pauses = [c["answer"] for c in trace.table("control").to_pylist() if c["name"] == "pause_scheduler"]
    assert pauses == (['"pending"'] if engine == "v1" else [])
    for number in [e["engine"] for e in trace.engines() if e["engine"] in PAUSES]:
        straight, paused = PAUSES[number]
        for i in range(2):
            whole, client = (seen[f"{name}-{i}"]["token_ids"] for name in (straight, paused))
            tokens = output_of(trace, f"{paused}-{i}")
            lost = [t for t in tokens if t["flags"] == DISCARDED]
            if engine == "latest":
                assert client == whole and lost == []
                continue
            (token,) = lost
            at = token["position"] - len(seen[f"{paused}-{i}"]["prompt_token_ids"])
            # the engine went on from it, so the rest is what comes after it
            assert token["token_id"] == whole[at] and client == [*whole[:at], *whole[at + 1 :], client[-1]]
            assert [t["token_id"] for t in tokens] == [*whole, client[-1]]
            after = next(t for t in tokens if t["engine_step"] > token["engine_step"])
            assert after["flags"] == ACCEPTED and after["position"] == token["position"]
            assert f"request {token['request']} at position {token['position']}" in deleted[number]


def test_an_update_with_a_reset_is_no_risk_and_one_without_is(recorded: Any) -> None:
    engine, folder, trace, _ = recorded
    fired = json.loads(run_cli("lint", folder / "trace.arrow", "--json").stdout)["fired"]
    says = {one["where"]: one["detail"] for one in fired if one["id"] == "prefix-caching-with-weight-updates"}
    assert set(says) == {"engine 0", "engine 1"}
    assert all(detail.startswith("no reset of the cache with 4 of 4 weight changes") for detail in says.values())
    if engine != "v1":
        return
    updates = of_engine(trace, "weights", PAUSED)
    assert len(updates) == 2 and all(row["num_changed"] for row in updates)
    resets = [c for c in of_engine(trace, "control", PAUSED) if c["name"] == "reset_prefix_cache"]
    assert {u["engine_step"] for u in updates} <= {c["engine_step"] for c in resets if c["answer"] == "true"}
    (deletes,) = (one for one in fired if one["id"] == "pause-keep-deletes-a-token")
    assert deletes["where"] == f"engine {PAUSED}" and deletes["detail"].startswith("running rollouts: 2, before")


@pytest.mark.parametrize("kind", KINDS)
def test_replay_scores_over_the_kv_that_each_rollout_had_and_finds_nothing(
    recorded: Any, kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    engine, _, trace, _ = recorded
    folders = {version: scaled(tiny_model, tmp_path / str(version), scale) for version, scale in enumerate(SCALES)}
    # in the engine itself, too, where it schedules a step before the last one has ended
    again = engine if kind == "async" else None
    how = {"expect": "raw", "dtype": "float32", "engine": again}
    made = replay(trace, folders[0], only=KINDS[kind], weights=folders, **how)
    assert_opens(made, tmp_path / "page.html")
    found = made.result
    if again:
        parts = found.verdict.parts
        assert parts.engines[0].is_same and parts.engines[0].num_steps == len(of_engine(trace, "steps", KINDS[kind]))
        assert (parts.parts[0].name, parts.parts[0].num_nonzero) == ("state", 0)
        assert parts.parts[0].num_tokens == found.data.num_tokens
    # a rollout that went on from blocks in which two versions meet
    assert [(s.why, s.count) for s in found.data.skipped_requests] == [("mixed kv", 1)]
    names = {r["request"]: r["external_id"] for r in of_engine(trace, "requests", KINDS[kind])}
    leave = {names[rollout.request] for rollout in found.verdict.rollouts if rollout.onset}
    # of these vLLM 0.18 loses a token, whose KV the rest of the rollout goes on from
    assert leave <= {name for name in names.values() if "drained" in name}
    kv = {other.name: other for other in found.verdict.kv}
    assert kv["recomputed"].num_rollouts >= 5 and kv["kept"].num_rollouts >= 1
    for other in kv.values():
        assert other.num_recorded_better == other.num_rollouts and other.median_nats > 5
        assert other.d_abs_mean_recorded < 1e-4 < 1e-2 < other.d_abs_mean
