"""The sharp lens on real engines: recorded tokens forced through the engine once more, in the recorded composition."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from helpers.engine import job, record
from tracekit.diagnose.parts import NAMES
from tracekit.diagnose.reran import COMPOSED
from tracekit.replay.output import Replay
from tracekit.replay.runner import replay
from tracekit.tables import PARTIAL, PREEMPTED
from tracekit.trace.reader import Trace

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=["v1", "latest"])
def again(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trace, its replay with a re-run, and what the job knows."""
    folder = tmp_path_factory.mktemp(f"forced-{request.param}")
    other = shutil.copytree(tiny_model, folder / "other")
    tensors = load_file(other / "model.safetensors")
    changed = {n: t * 1.25 if "input_layernorm" in n else t for n, t in tensors.items()}
    save_file(changed, other / "model.safetensors", {"format": "pt"})
    trace = record(request.param, folder / "trace.arrow", job("forced_again.py", tiny_model, other, folder))
    weights = {1: other, 2: tiny_model, 3: other, 4: tiny_model}
    found = replay(trace, tiny_model, weights=weights, expect="raw", engine=request.param)
    return trace, found, json.loads((folder / "truth.json").read_text())


def state(trace: Trace, found: Replay) -> dict[str, Any]:
    """What is left of each rollout's recorded values beside the re-run's, by the name of its request."""
    names = {row["request"]: row["request_id"].rpartition("-")[0] for row in trace.table("requests").to_pylist()}
    requests, parts = (found.tokens.column(name).to_numpy() for name in ("request", "part_state"))
    return {names[number]: parts[requests == number] for number in np.unique(requests).tolist()}


def rows_with(trace: Trace, flag: int) -> int:
    return sum(bool(row["flags"] & flag) for row in trace.table("scheduled").to_pylist())


def test_clean_rollouts_are_repeated_to_the_bit(again: Any) -> None:
    trace, found, truth = again
    by_name = state(trace, found)
    assert {"first", "0_warm", "1_warm", "nucleus", "penalties", "greedy", "min_p", "kept-0", "cleared-1"} < {*by_name}
    for name, left in by_name.items():
        if name not in truth:
            assert np.all(left == 0.0), name
    assert rows_with(trace, PARTIAL) and rows_with(trace, PREEMPTED) and trace.rows("cache")


def test_kv_changed_behind_the_engines_back_is_dated_at_its_token_and_nowhere_else(again: Any) -> None:
    trace, found, truth = again
    by_name = state(trace, found)
    assert {name for name, left in by_name.items() if left.any()} == set(truth) == {"hurt-1", "stale"}
    for name, first in truth.items():
        assert np.flatnonzero(by_name[name])[0] == first
    assert truth["hurt-1"] > 4
    verdict = found.result.verdict
    (cause,) = (own for own in verdict.causes if own.code == "state")
    names = {row["request"]: row["request_id"].rpartition("-")[0] for row in trace.table("requests").to_pylist()}
    assert {names[verdict.rollouts[i].request] for i in cause.rollouts} == {*truth}
    assert names[verdict.rollouts[cause.since_rollout].request] == "hurt-1"
    assert cause.since.output_index == truth["hurt-1"] and verdict.layer == "inference path" and cause.names == []
    assert cause.numbers["cache hit"] == 1 and cause.numbers["weight update"] == cause.numbers["preemption"] == 0


def test_kv_kept_and_kv_computed_again_are_told_apart(again: Any) -> None:
    trace, found, _ = again
    values = {}
    names = {row["request"]: row["request_id"].rpartition("-")[0] for row in trace.table("requests").to_pylist()}
    for row in found.tokens.to_pylist():
        values.setdefault(names[row["request"]], []).append((row["weight_version"], row["rerun_logprob"]))
    for i in range(2):
        kept, cleared = values[f"kept-{i}"], values[f"cleared-{i}"]
        first = [version for version, _ in kept].index(1)
        assert 4 < first == [version for version, _ in cleared].index(3) < len(kept) - 4
        assert [v for _, v in kept[:first]] == [v for _, v in cleared[:first]]
        assert kept[first][1] != cleared[first][1]


def test_the_parts_of_every_token_add_up_to_the_bit(again: Any) -> None:
    _, found, _ = again
    parts = found.result.verdict.parts
    assert [part.name for part in parts.parts] == [*NAMES]
    assert parts.residual_max == 0.0 and parts.scorer_dtype == "bfloat16"
    (engine,) = parts.engines
    assert engine.is_same and COMPOSED not in engine.stopped
    columns = {name: found.tokens.column(f"part_{name}").to_numpy() for name in NAMES}
    whole = np.nansum(np.stack(list(columns.values())), axis=0)
    exact = np.isfinite(columns["precision"])
    recorded, trainer = (found.tokens.column(n).to_numpy() for n in ("rollout_logprob", "replay_raw_logprob"))
    assert np.allclose(whole[~exact], (recorded - trainer.astype("f8"))[~exact], atol=1e-12)
    assert exact.any() and np.nanmax(np.abs(columns["kernels"])) > 0
