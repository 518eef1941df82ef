"""What lint's rules say of vLLM holds in each engine: the engines' own code answers, none is started."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from helpers.engine import JOBS, engine_environ
from tracekit.audit.lint.from_file import DEFAULTS, VERSIONS, subject_of
from tracekit.audit.lint.run import lint
from tracekit.audit.lint.temperature import LOWEST_TEMPERATURE
from tracekit.engines.env import ensure

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module", params=["v0", "v1", "latest"])
def told(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    env = ensure(request.param)
    environ = engine_environ(env, TORCHDYNAMO_DISABLE="1", VLLM_LOGGING_LEVEL="ERROR")
    done = subprocess.run([env.python, JOBS / "statements.py"], env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return request.param, json.loads(done.stdout)


def fired(engine: str, **arguments: Any) -> set[str]:
    subject, _ = subject_of(arguments, engine, "f")
    return {one.rule.id for one in lint([subject])}


def test_a_tiny_temperature_is_raised(told: Any) -> None:
    low = LOWEST_TEMPERATURE
    assert told[1]["raised"] == {"1e-06": low, "0.005": low, "0.01": low, "0.02": 0.02, "0.0": 0.0}


def test_sampling_defaults_are_those_of_the_file_and_the_override_and_change_no_given_parameters(told: Any) -> None:
    engine, facts = told
    penalty = {"presence_penalty": 1.5} if engine == "latest" else {}  # older ones do not take it from the file
    assert facts["defaults"] == {
        "auto": {"temperature": 0.6, "top_k": 20, **penalty},
        "vllm": {},
        "override": {"temperature": 0.9, "top_k": 20, **penalty},
        "override-vllm": {"temperature": 0.9},
        "given": [1.0, -1 if engine == "v0" else 0, 0.0],
        "barred by min_tokens": [2, 7],
    }


def test_blocks_are_tied_to_what_the_rule_says_of_adapters(told: Any) -> None:
    engine, facts = told
    adapters = [("x", 1, "/a"), ("x", 1, "/b"), ("x", 2, "/a"), ("y", 1, "/a")]
    key = {"v0": lambda a: a[1], "v1": lambda a: a[0], "latest": lambda a: (a[0], a[2])}[engine]
    assert facts["adapter_keys"] == [[key(one) == key(other) for other in adapters] for one in adapters]


def test_only_a_late_engine_has_an_fp32_head(told: Any) -> None:
    engine, facts = told
    assert facts["head_dtype"] == {"v0": None, "v1": "torch.bfloat16", "latest": "torch.float32"}[engine]
    if engine in VERSIONS:
        ignored = "one-sided-fp32-head" in fired(engine, dtype="bfloat16", hf_overrides={"head_dtype": "float32"})
        assert ignored == (facts["head_dtype"] == "torch.bfloat16")


def test_cascade_attention_needs_eight_requests_in_the_one_engine_that_has_it(told: Any) -> None:
    engine, facts = told
    assert facts["cascade"] == ({"7": False, "8": True} if engine == "v1" else None)
    if engine in VERSIONS:
        assert ("cascade-attention" in fired(engine, disable_cascade_attn=False)) == (facts["cascade"] is not None)


def test_a_pause_empties_a_connector_in_a_late_engine_only(told: Any) -> None:
    engine, facts = told
    asked = {"v1": {}, "latest": {"reset_connector": True}}
    if engine == "v0":
        assert facts["resets"] is None
    else:
        assert facts["resets"]["pause"] == [{"reset_running_requests": True, **asked[engine]}]
        assert facts["resets"]["no connector"] is (engine == "latest")


def test_penalties_see_the_last_token_under_async_scheduling(told: Any) -> None:
    engine, facts = told
    assert facts["placeholders"] == (None if engine == "v0" else [3, 5])


def test_a_seed_beside_requests_without_one_is_ignored_on_the_cpu_of_one_engine(told: Any) -> None:
    engine, facts = told
    tokens = facts["seeded_beside_unseeded"]  # that one seed gave
    assert tokens > 1 if engine == "v1" else tokens in (None, 1)


def test_prompt_logprobs_skip_the_cache_of_v1(told: Any) -> None:
    engine, facts = told
    assert facts["skips_the_cache"] is (engine != "v0")


def test_prompts_are_scored_raw_by_v1_and_with_their_parameters_by_v0(told: Any) -> None:
    engine, facts = told
    assert facts["prompts_have_a_temperature"] is (engine == "v0")


def test_every_kv_dtype_that_is_no_float_of_16_bits_is_named(told: Any) -> None:
    rounds = {name for name in told[1]["kv_dtypes"] if "quantized-kv-cache" in fired("v1", kv_cache_dtype=name)}
    assert rounds == set(told[1]["kv_dtypes"]) - {"auto", "float16", "bfloat16"}


def test_what_is_not_said_is_what_the_engine_takes(told: Any) -> None:
    engine, facts = told
    if engine in VERSIONS:
        theirs = {name: value for name, value in facts["engine_defaults"].items() if value is not None}
        assert theirs == {name: DEFAULTS[name] for name in theirs}
