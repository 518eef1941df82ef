"""A real engine that is killed in the middle: what it recorded is sealed, told and readable; nothing is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.engine import JOBS, wait_for
from tracekit.trace.reader import open_trace

pytestmark = pytest.mark.engine


def test_a_killed_engine_core_and_ctrl_c(tiny_model: Path, tmp_path: Path) -> None:
    out, ready, log = tmp_path / "t.arrow", tmp_path / "ready", tmp_path / "log.txt"
    argv = [sys.executable, "-m", "tracekit", "record", "--engine", "v1", "-o", str(out), "--"]
    argv += ["python", str(JOBS / "ends_badly.py"), str(tiny_model), "core", str(ready)]
    with open(log, "wb") as file:
        process = subprocess.Popen(argv, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for(lambda: ready.exists() or process.poll() is not None, "the second half")
        job = int(ready.read_text())
        wait_for(lambda: b"died unexpectedly" in log.read_bytes() or process.poll() is not None, "vLLM's notice", 120)
        time.sleep(1)
        if process.poll() is None:  # 0.18.1 waits for its dead core for ever
            os.killpg(process.pid, signal.SIGINT)
        code = process.wait(120)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    said = log.read_text()
    assert code in (1, 130), said[-3000:]
    assert f"tracekit: the job ended with exit status {code}" in said.splitlines()[-1]
    assert "tracekit: lost: " in said and "the engine never said goodbye" in said
    assert not Path(f"/proc/{job}").exists()
    trace = open_trace(out)
    assert not trace.complete and trace.rows("requests") == 8
    finished = trace.table("finishes").num_rows
    assert finished == 4 and trace.rows("tokens") > 4 * 8
