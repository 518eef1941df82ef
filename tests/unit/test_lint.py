"""``tracekit lint``: each rule on a subject that has it and on one that has not, from files and from traces."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from helpers.factories import make_engine, make_tables
from helpers.lint_traces import config, engine, recorded
from tracekit.audit.lint.from_file import subject_of
from tracekit.audit.lint.from_trace import version_of
from tracekit.audit.lint.run import RULES, lint
from tracekit.audit.lint.types import BREAKS, SEVERITIES
from tracekit.cli.lint import command
from tracekit.errors import UsageError

PARITY = {
    "logprobs_mode": "processed_logprobs",
    "enable_prefix_caching": False,
    "async_scheduling": False,
    "enforce_eager": True,
    "generation_config": "vllm",
    "dtype": "float32",
}
ASKED = {"temperature": 1.0, "logprobs": 0}
RAW = {"logprobs_mode": "raw_logprobs"}
UPDATE = {"mode": "keep", "clear_cache": False}


def fired(engine="v1", sampling=None, weight_update=None, **arguments):
    sections = {} if weight_update is None else {"weight_update": weight_update}
    subject, _ = subject_of({**PARITY, **arguments, "sampling": {**ASKED, **(sampling or {})}, **sections}, engine, "f")
    return {one.rule.id for one in lint([subject])}


# rule -> engine arguments and sections that have it
BEFORE_A_RUN = {
    "raw-logprobs-with-temperature": {**RAW, "sampling": {"temperature": 0.7}},
    "raw-logprobs-with-truncation": {**RAW, "sampling": {"top_p": 0.9}},
    "raw-logprobs-with-penalties": {**RAW, "sampling": {"temperature": 0, "repetition_penalty": 1.1}},
    "raw-logprobs-with-masks": {**RAW, "sampling": {"min_tokens": 4}},
    "raw-logprobs-with-processors": {**RAW, "logits_processors": ["mine:Mine"]},
    "logits-not-logprobs": {"logprobs_mode": "processed_logits"},
    "logprobs-not-asked": {"sampling": {"logprobs": None}},
    "trainer-temperature": {"sampling": {"temperature": 0.7}},
    "truncated-support": {"sampling": {"min_p": 0.1}},
    "penalties-in-the-trainer": {"sampling": {"frequency_penalty": 0.5}},
    "masks-in-the-trainer": {"sampling": {"bad_words": ["x"]}},
    "processors-in-the-trainer": {"logits_processors": ["mine:Mine"]},
    "raw-prompt-logprobs": {"sampling": {"prompt_logprobs": 0, "temperature": 0.7}},
    "structured-outputs": {"sampling": {"structured_outputs": {"regex": "a+"}}},
    "generation-config-sampling": {"generation_config": "auto", "sampling": {"repetition_penalty": 1.1}},
    "engine-sampling-defaults": {"override_generation_config": {"top_k": 20}},
    "overridden-config": {"hf_overrides": {"rope_theta": 1000000.0}},
    "random-weights": {"load_format": "dummy"},
    "prefix-caching-with-weight-updates": {"enable_prefix_caching": True, "weight_update": UPDATE},
    "pause-keep-deletes-a-token": {"async_scheduling": True, "weight_update": {"mode": "keep"}},
    "pause-keep-recomputes": {"weight_update": {"mode": "keep", "clear_cache": True}},
    "kv-connector-with-weight-updates": {"kv_transfer_config": {"kv_connector": "x"}, "weight_update": UPDATE},
    "async-scheduling": {"async_scheduling": True},
    "prompt-logprobs": {"enable_prefix_caching": True, "sampling": {"prompt_logprobs": 0}},
    "raised-temperature": {"sampling": {"temperature": 1e-6}},
    "one-sided-fp32-head": {"dtype": "bfloat16"},
    "quantized-kv-cache": {"kv_cache_dtype": "fp8_e4m3"},
    "quantized-weights": {"quantization": "fp8"},
    "float16": {"dtype": "float16"},
    "cascade-attention": {"disable_cascade_attn": False},
    "speculative-decoding": {"speculative_config": {"method": "ngram"}},
    "compiled": {"enforce_eager": False},
    "tensor-parallel": {"tensor_parallel_size": 2},
    "mixture-of-experts": {"is_moe": True},
}
FROM_TRACES = {"stale-prefix-hits", "deleted-token", "in-flight-update", "lora-name-reused", "seeds-ignored"}
FROM_TRACES |= {"prefix-hits", "preemptions", "resumed-on-foreign-blocks", "adapter-on-some-requests"}
FROM_TRACES |= {"processed-prompt-logprobs"}
WITH_A_TRAINER = {
    "trainer-config-differs",
    "trainer-config-unsaid",
    "trainer-generation-config-differs",
    # see test_lint_tokenizer
    "trainer-tokenizer-differs",
    "trainer-special-tokens-differ",
    "trainer-chat-template-differs",
    "trainer-vocabulary-padded",
    "trainer-tokenizer-unknown",
}  # see test_lint_outside


def test_settings_for_parity_fire_nothing():
    assert fired() == set() and fired("latest") == set()
    assert fired(weight_update=UPDATE) == set()


@pytest.mark.parametrize("rule", BEFORE_A_RUN)
def test_a_rule_holds_for_what_has_it(rule):
    assert rule in fired(**BEFORE_A_RUN[rule])


def test_every_rule_is_tested_and_says_all_it_has_to():
    assert {rule.id for rule in RULES} == set(BEFORE_A_RUN) | FROM_TRACES | WITH_A_TRAINER
    assert len({rule.id for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.severity in SEVERITIES and rule.fix and rule.reference and rule.why.endswith(".")


def test_what_an_engine_does_by_default_breaks_parity_at_another_temperature():
    for kind in ("v1", "latest"):
        subject, _ = subject_of({"sampling": {"temperature": 0.7, "logprobs": 0}}, kind, "f")
        found = {one.rule.id: one for one in lint([subject])}
        assert found["raw-logprobs-with-temperature"].rule.severity == BREAKS
        assert {"async-scheduling", "compiled"} <= set(found)
    assert "pause-keep-deletes-a-token" not in fired("latest", weight_update={"mode": "keep"}, async_scheduling=True)
    assert "async-scheduling" not in fired(device="cpu", async_scheduling=True)


def test_greedy_requests_have_no_temperature_and_no_truncation():
    assert fired(**RAW, sampling={"temperature": 0, "top_p": 0.5, "top_k": 3}) == set()


def test_a_tiny_temperature_is_raised_and_not_greedy():
    assert "raw-logprobs-with-temperature" in fired(**RAW, sampling={"temperature": 1e-6})
    assert "raised-temperature" in fired(sampling={"temperature": 1e-6})
    for temperature in (0, 0.02):
        assert "raised-temperature" not in fired(sampling={"temperature": temperature})


def test_a_recorded_temperature_may_be_a_raised_one(tmp_path):
    found = recorded(tmp_path, engine(make_tables(2, 8, sampling_params={"temperature": 0.01, "logprobs": 0})))
    assert found["raised-temperature"] == "2 of 2 requests: temperature 0.01, or less"
    assert "raw-logprobs-with-temperature" in found


def test_cascade_attention_is_no_risk_where_there_is_none(tmp_path):
    assert "cascade-attention" not in fired("latest", disable_cascade_attn=False)
    gpu = {"model_config": {"disable_cascade_attn": False}, "device_config": {"device_type": "cuda"}}
    found = recorded(tmp_path, engine(make_tables(9, 8), **gpu))
    assert found["cascade-attention"] == "disable_cascade_attn is false, and steps had up to 9 requests"
    on_cpu = {**gpu, "device_config": {"device_type": "cpu"}}
    for name, tables in {"few": engine(make_tables(7, 8), **gpu), "cpu": engine(make_tables(9, 8), **on_cpu)}.items():
        (tmp_path / name).mkdir()
        assert "cascade-attention" not in recorded(tmp_path / name, tables)
    tables = make_tables(9, 8)
    tables["engines"] = make_engine(kind="v0", engine_version="0.8.5", config=config(**gpu))
    (tmp_path / "v0").mkdir()
    assert "cascade-attention" not in recorded(tmp_path / "v0", tables)


@pytest.mark.parametrize("dtype", ["fp8", "int4_per_token_head", "turboquant_4bit_nc", "nvfp4", "ultraquant_4bit"])
def test_every_kv_dtype_that_rounds_is_named(dtype):
    assert "quantized-kv-cache" in fired(kv_cache_dtype=dtype)
    assert "quantized-kv-cache" not in fired(kv_cache_dtype="bfloat16")


def test_prompt_logprobs_hide_nothing_where_no_cache_is_skipped(tmp_path):
    assert "prompt-logprobs" not in fired(sampling={"prompt_logprobs": 0})
    tables = make_tables(2, 8, sampling_params={"temperature": 1.0, "logprobs": 0, "prompt_logprobs": 1})
    assert "prompt-logprobs" in recorded(tmp_path, engine(tables))
    tables["engines"] = make_engine(kind="v0", engine_version="0.8.5", config=config())
    (tmp_path / "v0").mkdir()
    assert "prompt-logprobs" not in recorded(tmp_path / "v0", tables)

    assert "prompt-logprobs" not in fired(
        enable_prefix_caching=True, sampling={"prompt_logprobs": 0, "skip_reading_prefix_cache": False}
    )


@pytest.mark.parametrize("kind", ["v0", "v1"])
def test_prompt_logprobs_are_raw_from_v1_and_processed_from_v0(tmp_path, kind):
    rule, other = "raw-prompt-logprobs", "processed-prompt-logprobs"
    if kind == "v0":
        rule, other = other, rule
    params = {"temperature": 0.7, "repetition_penalty": 1.1, "logprobs": 0, "prompt_logprobs": 0}
    tables = engine(make_tables(2, 8, sampling_params=params))
    tables["engines"] = make_engine(kind=kind, config=config())
    found = recorded(tmp_path, tables)
    shown = "temperature 0.7" if kind == "v0" else "temperature 0.7, repetition_penalty 1.1"
    assert found[rule] == f"2 of 2 requests: {shown}" and other not in found
    for n, harmless in enumerate(({"prompt_logprobs": None}, {"temperature": 1.0, "repetition_penalty": 1.0})):
        (tmp_path / str(n)).mkdir()
        tables["requests"]["sampling_params"] = [json.dumps({**params, **harmless})] * 2
        assert rule not in recorded(tmp_path / str(n), tables)


def test_min_tokens_bar_nothing_where_no_token_ends_a_rollout(tmp_path):
    params = {"temperature": 1.0, "logprobs": 0, "min_tokens": 4, "all_stop_token_ids": [2]}
    assert "raw-logprobs-with-masks" in recorded(tmp_path, engine(make_tables(2, 8, sampling_params=params)))
    (tmp_path / "none").mkdir()
    tables = engine(make_tables(2, 8, sampling_params={**params, "all_stop_token_ids": []}))
    assert "raw-logprobs-with-masks" not in recorded(tmp_path / "none", tables)


def test_the_grammar_of_a_v0_engine_is_one():
    assert "structured-outputs" in fired(sampling={"guided_decoding": {"regex": "a+"}})


def test_speculation_that_drafted_nothing_changed_nothing(tmp_path):
    tables = engine(make_tables(2, 8), speculative_config={"method": "ngram"})
    assert "speculative-decoding" not in recorded(tmp_path, tables)
    tables["scheduled"]["num_draft"][4] = 3
    (tmp_path / "drafts").mkdir()
    found = recorded(tmp_path / "drafts", tables)
    assert found["speculative-decoding"] == "speculative_config is set, drafted tokens: 3"


def test_a_v0_engine_has_graphs_and_no_compiler(tmp_path):
    tables = make_tables(2, 8)
    tables["engines"] = make_engine(kind="v0", config=config(model_config={"enforce_eager": False}))
    assert recorded(tmp_path, tables)["compiled"] == "CUDA graphs"
    tables["engines"] = make_engine(kind="v0", config=config(model_config={"enforce_eager": True}))
    (tmp_path / "eager").mkdir()
    assert "compiled" not in recorded(tmp_path / "eager", tables)


def worker(**head):
    values = {"rank": np.zeros(1, "u4"), "pid": np.ones(1, "u4"), "time_ns": np.ones(1, "i8")}
    return {**values, "config": [json.dumps({"head": {"dtype": "bfloat16", **head}})]}


def test_the_head_is_what_the_worker_found(tmp_path):
    tables = engine(make_tables(2, 8))
    tables["workers"] = worker()
    assert recorded(tmp_path, tables)["one-sided-fp32-head"] == "lm_head in bfloat16"
    for name, head in {"computed": {"computed_in": "float32"}, "stored": {"dtype": "float32"}}.items():
        tables["workers"] = worker(**head)
        (tmp_path / name).mkdir()
        assert "one-sided-fp32-head" not in recorded(tmp_path / name, tables)


def test_an_fp32_head_is_no_fp32_head_where_the_engine_ignores_it():
    head = {"dtype": "bfloat16", "hf_overrides": {"head_dtype": "float32"}}
    assert "one-sided-fp32-head" in fired("v1", **head) and "one-sided-fp32-head" not in fired("latest", **head)


def test_names_may_be_those_of_the_command_line(tmp_path):
    text = """
logprobs-mode = "processed-logprobs"
no-enable-prefix-caching = true
hf-overrides = '{"head_dtype": "float32"}'
port = 8000
[sampling]
temperature = 1.0
"""
    path = tmp_path / "engine.toml"
    path.write_text(text.replace("processed-logprobs", "processed_logprobs"))
    done = CliRunner().invoke(command, ["--engine-config", str(path), "--engine", "latest", "--json"])
    facts = json.loads(done.output)
    assert {one["where"] for one in facts["fired"]} == {str(path)}
    assert facts["not_looked_at"] == ["port"] and facts["breaks_parity"] == 0
    assert "prefix-caching-with-weight-updates" not in {one["id"] for one in facts["fired"]}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.yaml", "{}", "come as .json or .toml"),
        ("a.json", "{", "this is not JSON"),
        ("a.json", "[]", "one object"),
        ("a.toml", "= 3", "this is not TOML"),
        ("a.json", '{"sampling": 3}', "'sampling'"),
        ("a.json", '{"engine": 3}', "'engine'"),
        ("a.json", '{"sampling": {"temperature": "hot"}}', "temperature is a number"),
        ("a.json", '{"hf_overrides": 3}', "hf_overrides is an object"),
        ("a.json", '{"hf_overrides": "{x"}', "this is not JSON"),
        ("missing.json", None, "cannot be read"),
    ],
)
def test_a_file_that_is_none_is_a_usage_error(tmp_path, name, text, says):
    if text is not None:
        (tmp_path / name).write_text(text)
    done = CliRunner().invoke(command, ["--engine-config", str(tmp_path / name)])
    assert isinstance(done.exception, UsageError) and says in str(done.exception)


def test_either_a_trace_or_a_file():
    for arguments in ([], ["t.arrow", "--engine-config", "f.json"]):
        assert isinstance(CliRunner().invoke(command, arguments).exception, UsageError)


def test_versions():
    assert version_of("0.18.1+cpu") == (0, 18, 1) and version_of("dev") == ()


def test_a_trace_like_the_defaults_and_one_for_parity(tmp_path):
    params = {"temperature": 0.7, "top_p": 0.9, "logprobs": 0}
    found = recorded(tmp_path, engine(make_tables(3, 8, sampling_params=params)))
    assert found["raw-logprobs-with-temperature"] == "3 of 3 requests: temperature 0.7"
    assert set(found) == {"raw-logprobs-with-temperature", "raw-logprobs-with-truncation", "one-sided-fp32-head"}
    for name in FROM_TRACES:
        assert name not in found
    tables = make_tables(3, 8, sampling_params=params)
    tables["engines"] = make_engine(config=config(), logprobs_mode="processed_logprobs")
    (tmp_path / "parity").mkdir()
    found = recorded(tmp_path / "parity", tables)
    assert set(found) == {"trainer-temperature", "truncated-support", "one-sided-fp32-head"}
