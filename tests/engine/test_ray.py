"""Engines in real Ray actors that are ended as trainers end them: a kill of the actor, and Ray's own shutdown."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from helpers.engine import job, run_cli
from helpers.ray_overlay import ray_for
from tracekit.engines.env import EngineEnv
from tracekit.trace.reader import open_trace

# long: it fetches Ray, and starts two engines each time
pytestmark = [pytest.mark.engine, pytest.mark.long]


@pytest.mark.parametrize("pause_secs", [0, 1])
def test_what_a_killed_actor_gave_is_in_the_trace_or_counted_as_lost(
    pause_secs: int, v1_env: EngineEnv, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [os.environ.get("PYTHONPATH", ""), str(ray_for(v1_env, print))]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    out, path = tmp_path / "received.json", tmp_path / "trace.arrow"
    done = run_cli("record", "--engine", "v1", "-o", path, "--", *job("ray_actor.py", tiny_model, out, pause_secs))
    trace = open_trace(path)
    tokens = Counter((row["engine"], row["request"]) for row in trace.table("tokens").to_pylist())
    recorded = Counter(engine for engine, _ in tokens.elements())
    received = [sum(map(len, actor)) for actor in json.loads(out.read_text())]
    lost = {loss.engine for loss in trace.all_losses()}
    assert done.returncode == (3 if lost else 0), done.stderr[-4000:]
    # right behind generate() a kill can be quicker than the last batch; it is told then
    short = {engine for engine in range(2) if recorded[engine] < received[engine]}
    assert short <= lost
    if pause_secs:
        assert not lost and len(trace.notes()) == 2 and sum(received) == 48
