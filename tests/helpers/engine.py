"""Commands and jobs on a real engine, as tests start them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracekit.engines.env import EngineEnv
from tracekit.trace.reader import Trace, open_trace

JOBS = Path(__file__).parents[1] / "engine" / "jobs"
EXAMPLES = Path(__file__).parents[2] / "examples"


def engine_environ(env: EngineEnv, **more: str) -> dict[str, str]:
    """os.environ as a job in this engine environment sees it."""
    path = f"{env.python.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **env.environ, "PATH": path, **more}


def job(name: str, *arguments: object) -> list[str]:
    """The command of one job; `then` adds another to run in the same process."""
    return ["python", str(JOBS / "run.py"), str(JOBS / name), *map(str, arguments)]


def then(name: str, *arguments: object) -> list[str]:
    return ["--", str(JOBS / name), *map(str, arguments)]


def plain(name: str, *arguments: object) -> list[str]:
    """The command of one job that runs with the recorder dormant; those that `then` adds are recorded."""
    return ["python", str(JOBS / "run.py"), f"plain:{JOBS / name}", *map(str, arguments)]


def run_cli(
    *argv: object, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout_secs: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run ``tracekit`` in a process of its own."""
    command = [sys.executable, "-m", "tracekit", *map(str, argv)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout_secs)


def record(engine: str, trace: Path, command: Sequence[object], *options: object) -> Trace:
    """Run a command under the recorder in this engine environment."""
    done = run_cli("record", "--engine", engine, *options, "-o", trace, "--", *command)
    assert done.returncode == 0, done.stderr[-4000:]
    return open_trace(trace)


def run_plain(env: EngineEnv, command: Sequence[object]) -> None:
    """Run a command in this engine environment with no daemon named."""
    subprocess.run([str(word) for word in command], env=engine_environ(env), check=True, timeout=600)


def wait_for(condition: Callable[[], Any], what: str, timeout_secs: float = 300) -> Any:
    deadline = time.monotonic() + timeout_secs
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"timed out waiting for {what}")


def job_folder(folder: Path, *, wait: bool) -> Path:
    folder.mkdir()
    if wait:
        (folder / "wait").touch()
    return folder


def tokens_of(folder: Path) -> Any:
    return json.loads((folder / "tokens.json").read_text())
