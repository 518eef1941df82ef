"""The recorder changes nothing: with the daemon absent, killed or stopped the engine gives the same tokens and ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.engine import engine_environ, job, job_folder, plain, then, tokens_of, wait_for
from tracekit.engines.env import EngineEnv
from tracekit.errors import EXIT_DATA_LOST, EXIT_OK
from tracekit.trace.reader import open_trace

pytestmark = pytest.mark.engine

NUM_TOKENS = 2 * 8 * 40


@pytest.fixture(scope="module")
def absent(v1_env: EngineEnv, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One process: the job with the recorder dormant, then with one whose daemon is not there; and where that is."""
    folder = tmp_path_factory.mktemp("absent")
    folders = [job_folder(folder / name, wait=False) for name in ("dormant", "absent")]
    command = plain("two_halves.py", tiny_model, folders[0]) + then("two_halves.py", tiny_model, folders[1])
    environ = engine_environ(v1_env, TRACEKIT_DAEMON=f"unix:{folder}/nobody.sock")
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=600)
    return folder, done, folders


@pytest.fixture(scope="module")
def reference(absent: Any) -> Any:
    """What the engine samples with no recorder attached."""
    _, done, (dormant, _) = absent
    assert done.returncode == 0, done.stderr[-3000:]
    return tokens_of(dormant)


def start_recorded(trace: Path, tiny_model: Path, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tracekit", "record", "--engine", "v1", "-o", str(trace), "--"]
    command += job("two_halves.py", tiny_model, folder)
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def daemon_of(recorder_pid: int) -> int:
    """Process id of the tracekitd that a ``tracekit record`` started."""
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"PPid:\t{recorder_pid}\n" in (entry / "status").read_text():
                if b"tracekitd" in (entry / "cmdline").read_bytes():
                    return int(entry.name)
        except OSError:
            continue
    return 0


def test_absent_daemon(absent: Any, reference: Any) -> None:
    home, done, folders = absent
    assert tokens_of(folders[1]) == reference
    assert [(folder / "freed").read_text() for folder in folders] == ["True", "True"]
    (note,) = home.glob("*.undelivered-*.json")
    told = json.loads(note.read_text())
    assert told["rows"]["tokens"] == NUM_TOKENS and told["rows"]["requests"] == 16
    assert [line for line in done.stderr.splitlines() if line.startswith("tracekit:")]


def test_killed_daemon_is_started_anew_and_nothing_is_lost(tiny_model: Path, reference: Any, tmp_path: Path) -> None:
    folder, trace = job_folder(tmp_path / "job", wait=True), tmp_path / "trace.arrow"
    process = start_recorded(trace, tiny_model, folder)
    wait_for(lambda: (folder / "half").exists() or process.poll() is not None, "the first half")
    os.kill(daemon_of(process.pid), signal.SIGKILL)
    (folder / "go").touch()
    _, told = process.communicate(timeout=600)
    assert process.returncode == EXIT_OK, told[-3000:]
    assert "killed" in told
    assert tokens_of(folder) == reference
    check_against(open_trace(trace), reference, complete=True)


def test_stopped_daemon(tiny_model: Path, reference: Any, tmp_path: Path) -> None:
    folder, trace = job_folder(tmp_path / "job", wait=True), tmp_path / "trace.arrow"
    process = start_recorded(trace, tiny_model, folder)
    wait_for(lambda: (folder / "half").exists() or process.poll() is not None, "the first half")
    os.kill(daemon_of(process.pid), signal.SIGSTOP)
    (folder / "go").touch()
    _, told = process.communicate(timeout=600)
    assert tokens_of(folder) == reference
    found = open_trace(trace)
    assert process.returncode == (EXIT_OK if found.complete else EXIT_DATA_LOST), told[-3000:]
    check_against(found, reference, complete=found.complete)


def test_killed_for_good_the_loss_is_counted_to_the_row(
    v1_env: EngineEnv, tiny_model: Path, reference: Any, tmp_path: Path
) -> None:
    folder = job_folder(tmp_path / "job", wait=True)
    home = tmp_path / "d"
    home.mkdir(mode=0o700)
    address, spool = f"unix:{home}/d.sock", tmp_path / "spool"
    daemon = subprocess.Popen([sys.executable, "-m", "tracekitd", "--listen", address, "--spool", str(spool)])
    wait_for(lambda: (home / "d.sock").exists(), "the daemon", 30)
    command = [sys.executable, "-m", "tracekit", "record", "--engine", "v1", "--daemon", address, "--"]
    command += job("two_halves.py", tiny_model, folder)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: (folder / "half").exists() or process.poll() is not None, "the first half")
    wait_for(lambda: open_trace(spool).rows("tokens") == NUM_TOKENS // 2, "the first half in the spool", 60)
    time.sleep(1)  # and confirmed
    daemon.kill()
    daemon.wait()
    (folder / "go").touch()
    _, told = process.communicate(timeout=600)
    assert process.returncode == EXIT_DATA_LOST, told[-3000:]
    assert tokens_of(folder) == reference
    (note,) = home.glob("*.undelivered-*.json")
    stored = open_trace(spool).table("tokens").num_rows
    lost = json.loads(note.read_text())["rows"]["tokens"]
    assert stored > 0 and lost > 0 and stored + lost == NUM_TOKENS
    assert f"{lost} tokens" in told


def check_against(trace: Any, reference: Any, *, complete: bool) -> None:
    """Every token of the trace is the client's, and with those counted as lost they are all."""
    tokens = trace.table("tokens").to_pylist()
    lost = sum(loss["rows"].get("tokens", 0) for loss in trace.losses())
    assert len(tokens) + lost == NUM_TOKENS
    assert complete == (lost == 0)
    for number, client in enumerate(reference):
        rows = [t for t in tokens if t["request"] == number]
        for row in rows:
            output_index = row["position"] - 3
            assert row["token_id"] == client["token_ids"][output_index]
            assert float(row["rollout_logprob"]).hex() == client["logprobs"][output_index]
