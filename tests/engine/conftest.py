"""Real engines for the tests: built once into the cache folder; a missing engine is a failure, not a skip."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tracekit.demo.model import ensure_demo_model, write_tiny_model
from tracekit.engines.env import EngineEnv, ensure

JOBS = Path(__file__).parent / "jobs"
EXAMPLES = Path(__file__).parents[2] / "examples"


def say(text: str) -> None:
    print(text, file=sys.__stderr__, flush=True)


@pytest.fixture(scope="session")
def v0_env() -> EngineEnv:
    return ensure("v0", say)


@pytest.fixture(scope="session")
def v1_env() -> EngineEnv:
    return ensure("v1", say)


@pytest.fixture(scope="session")
def latest_env() -> EngineEnv:
    return ensure("latest", say)


@pytest.fixture(scope="session")
def demo_model() -> Path:
    return ensure_demo_model(say)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def eager_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU builds compile two small sampler functions for up to minutes; nothing tested here is about that."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setenv("TRACEKIT_STRICT", "1")


def engine_environ(env: EngineEnv, **more: str) -> dict[str, str]:
    """os.environ as a job in this engine environment sees it."""
    path = f"{env.python.parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, **env.environ, "PATH": path, **more}


def run_cli(
    *argv: object, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``tracekit`` in a process of its own."""
    command = [sys.executable, "-m", "tracekit", *map(str, argv)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)
