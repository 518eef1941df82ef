"""Two jobs on two generations of vLLM and one daemon: one trace, both engines whole, their clocks lined up."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.browser import assert_opens
from helpers.engine import job, job_folder, run_cli, tokens_of, wait_for
from tracekit.engines.env import EngineEnv
from tracekit.replay.runner import replay
from tracekit.rpc.client import wait_ready
from tracekit.trace.reader import Trace, open_trace

pytestmark = pytest.mark.engine


def test_one_daemon_records_two_generations_at_once_on_one_clock(
    v0_env: EngineEnv, v1_env: EngineEnv, tiny_model: Path, tmp_path: Path
) -> None:
    home = tmp_path / "d"
    home.mkdir(mode=0o700)
    address, sealed = f"unix:{home}/d.sock", tmp_path / "trace.arrow"
    argv = ["daemon", "--listen", address, "--spool", str(tmp_path / "spool"), "--seal", str(sealed)]
    daemon = subprocess.Popen([sys.executable, "-m", "tracekit", *argv])
    try:
        wait_ready(address, 60)
        folders = {kind: job_folder(tmp_path / kind, wait=True) for kind in ("v0", "v1")}
        jobs = {kind: start(kind, address, tiny_model, folder) for kind, folder in folders.items()}
        for kind, folder in folders.items():
            process = jobs[kind]
            wait_for(lambda: (folder / "half").exists() or process.poll() is not None, f"the first half on {kind}")  # noqa: B023
        # the second half on v1 lies between the two on v0
        for kind in ("v1", "v0"):
            (folders[kind] / "go").touch()
            _, told = jobs[kind].communicate(timeout=600)
            assert jobs[kind].returncode == 0, told[-3000:]
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(120) == 0
    trace = open_trace(sealed)
    assert trace.complete
    facts = json.loads(run_cli("doctor", sealed, "--json").stdout)
    assert facts["violations"] == [] and facts["excused"] == []
    engines = {engine["kind"]: engine for engine in trace.engines()}
    assert {engine["engine"] for engine in engines.values()} == {0, 1}
    for kind, folder in folders.items():
        tokens = of_engine(trace, "tokens", engines[kind]["engine"])
        # requests are numbered as they were admitted, in each engine from 0
        found = [[t["token_id"] for t in tokens if t["request"] == number] for number in range(16)]
        assert found == [completion["token_ids"] for completion in tokens_of(folder)]
    first, middle, last = (wall_times(trace, engines[kind], half) for kind, half in (("v0", 0), ("v1", 1), ("v0", 1)))
    assert max(first) < min(middle) and max(middle) < min(last)
    found = replay(trace, tiny_model, dtype="float32")
    assert {rollout.engine for rollout in found.result.verdict.rollouts} == {0, 1}
    assert_opens(found, tmp_path / "page.html")


def start(kind: str, address: str, model: Path, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tracekit", "record", "--engine", kind, "--daemon", address, "--"]
    command += job("two_halves.py", model, folder)
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def of_engine(trace: Trace, table: str, engine: int) -> list[dict[str, Any]]:
    return [row for row in trace.table(table).to_pylist() if row["engine"] == engine]


def wall_times(trace: Trace, engine: dict[str, Any], half: int) -> list[int]:
    """Wall time, in nanoseconds, of the outputs of the steps that ran the job's first (0) or second half."""
    steps = of_engine(trace, "steps", engine["engine"])
    own = {t["engine_step"] for t in of_engine(trace, "tokens", engine["engine"]) if t["request"] // 8 == half}
    return [engine["wall_ns"] + s["output_ns"] - engine["mono_ns"] for s in steps if s["engine_step"] in own]
