"""Real engines for the tests: built once into the cache folder; a missing engine is a failure, not a skip."""

import sys
from pathlib import Path

import pytest

from tracekit.demo.model import ensure_demo_model
from tracekit.engines.env import EngineEnv, ensure


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


@pytest.fixture(autouse=True)
def eager_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU builds compile two small sampler functions for up to minutes; nothing tested here is about that."""
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    monkeypatch.setenv("TRACEKIT_STRICT", "1")
