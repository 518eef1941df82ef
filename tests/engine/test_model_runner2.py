"""Model runner 2 needs Triton; its own sampler with our hooks, and torch for its kernels, runs everywhere."""

import json
import subprocess
from typing import Any

import pytest

from helpers.engine import JOBS, engine_environ
from tracekit.engines.env import ensure

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("runner2") / "out.json"
    environ = engine_environ(ensure("latest"), TORCHDYNAMO_DISABLE="1", TRACEKIT_STRICT="1")
    environ.pop("TRACEKIT_DAEMON", None)
    subprocess.run(["python", JOBS / "runner2_sampler.py", out], env=environ, check=True, timeout=600)
    return json.loads(out.read_text())


def test_what_the_hooks_rely_on_is_there(cases: Any) -> None:
    assert cases["missing"] == ""


@pytest.mark.parametrize("name", ["raw", "raw, asked", "raw, fused", "processed"])
def test_both_values_of_every_row(cases: Any, name: str) -> None:
    case = cases[name]
    own, other = ("raw", "processed") if name.startswith("raw") else ("processed", "raw")
    assert case["raw"] != case["processed"]
    assert case["engine"] == case[own] and case["column"] == case[other]
    assert case["width"] == (3 if name == "raw, asked" else 1)


def test_a_fused_sampler_is_not_given_up_for_logprobs_that_nobody_asked_for(cases: Any) -> None:
    assert cases["processed, fused"]["engine"] is None
    case = cases["processed, fused, asked"]
    assert case["engine"] == case["processed"] and case["column"] == case["raw"]


@pytest.mark.parametrize("name", ["raw, sharded", "logits"])
def test_where_one_column_is_all(cases: Any, name: str) -> None:
    case = cases[name]
    assert case["column"] is None and case["width"] == 1
    assert name == "logits" or case["engine"] == case["raw"]
