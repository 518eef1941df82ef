"""Real engines for the tests: built once into the cache folder; a missing engine is a failure, not a skip."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.engine import job, plain, record, then
from tracekit.demo.models import ensure_model
from tracekit.engines.env import EngineEnv, ensure
from tracekit.trace.reader import Trace


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
    return ensure_model("demo", say)


@pytest.fixture(scope="session")
def v0_recorded(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trace]:
    """One process of V0 whose engines are those of three jobs, and where their views are.

    The first of them ran before that with the recorder dormant.
    """
    folder = tmp_path_factory.mktemp("v0")
    command = plain("preempted_v0.py", tiny_model, folder / "without.json")
    command += then("preempted_v0.py", tiny_model, folder / "preempted.json")
    command += then("client_view_v0.py", tiny_model, folder / "view.json")
    command += then("kv_blocks_v0.py", tiny_model, folder / "truth.json")
    return folder, record("v0", folder / "trace.arrow", command)


@pytest.fixture(scope="session", params=["v1", "latest"])
def client_recorded(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trace of a job full of awkward requests, in float32, and what its clients received."""
    folder = tmp_path_factory.mktemp(request.param)
    trace, view = folder / "trace.arrow", folder / "view.json"
    return record(request.param, trace, job("client_view.py", tiny_model, view, "float32")), json.loads(
        view.read_text()
    )


@pytest.fixture(scope="session", autouse=True)
def engine_environment() -> Iterator[None]:
    """How every engine runs; the CPU builds compile two small functions for minutes, and nothing here is about that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        patch.setenv("TRACEKIT_STRICT", "1")
        patch.delenv("TRACEKIT_DAEMON", raising=False)
        patch.setenv("TRACEKIT_ATTACH", "off")
        patch.setenv("OMP_NUM_THREADS", "1")  # a second one spins for a core that another engine has
        yield
