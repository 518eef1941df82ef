"""``tracekit lint``: each rule on a subject that has it and on one that has not, from files and from traces."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from helpers.factories import make_cache, make_engine, make_tables, make_weights, write_spool, write_trace
from tracekit.audit.lint.from_file import subject_of
from tracekit.audit.lint.from_trace import subjects_of, version_of
from tracekit.audit.lint.run import RULES, lint
from tracekit.audit.lint.types import BREAKS, SEVERITIES
from tracekit.cli.lint import command
from tracekit.errors import UsageError
from tracekit.tables import ACCEPTED, DISCARDED, NEW, PREEMPTED, PREFILL, RESUMED
from tracekit.trace.reader import open_trace

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
    for engine in ("v1", "latest"):
        subject, _ = subject_of({"sampling": {"temperature": 0.7, "logprobs": 0}}, engine, "f")
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


def recorded(path, tables):
    write_trace(path / "t.arrow", [tables])
    (subject,) = subjects_of(open_trace(path / "t.arrow"))
    return {one.rule.id: one.detail for one in lint([subject])}


def config(**changes):
    vllm = {
        "model_config": {"dtype": "torch.bfloat16", "logprobs_mode": "raw_logprobs", "generation_config": "auto"},
        "cache_config": {"enable_prefix_caching": True, "block_size": 4, "cache_dtype": "auto"},
        "scheduler_config": {"async_scheduling": False},
        "device_config": {"device_type": "cpu"},
    }
    for name, values in changes.items():
        vllm[name] = {**vllm.get(name, {}), **values}
    return json.dumps({"vllm": vllm})


def engine(tables, **changes):
    tables["engines"] = make_engine(config=config(**changes))
    return tables


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


def weights(tables, first_step, *more):
    tables["weights"] = make_weights(first_step, *more)
    tables["tokens"] = {name: values.copy() for name, values in tables["tokens"].items()}
    for name in ("tokens", "steps"):
        tables[name]["weight_version"] = (tables[name]["engine_step"] >= first_step).astype("u4")


def control(tables, *rows):
    tables["control"] = {
        "engine_step": np.array([row[0] for row in rows], "u4"),
        "time_ns": np.full(len(rows), 2_000_000_000, "i8"),
        "name": [row[1] for row in rows],
        "arguments": [json.dumps(row[2]) for row in rows],
        "answer": [json.dumps(row[3]) for row in rows],
    }


def hit_after_update():
    """Request 0 in steps 0 to 7; weights change before step 4; request 1 has its prompt and starts with a hit at 4."""
    tables = engine(make_tables(2, 8))
    prompts = tables["requests"]["prompt_token_ids"]
    prompts[1] = prompts[0]
    weights(tables, 4)
    mine = tables["scheduled"]["request"] == 1
    early = mine & (tables["scheduled"]["engine_step"] < 4)
    tables["scheduled"] = {name: values[~early].copy() for name, values in tables["scheduled"].items()}
    at = np.flatnonzero((tables["scheduled"]["request"] == 1) & (tables["scheduled"]["engine_step"] == 4))
    tables["scheduled"]["num_computed"][at] = 4
    tables["scheduled"]["num_tokens"][at] = 1
    tables["scheduled"]["flags"][at] = NEW | PREFILL
    tables["cache"] = make_cache((4, 1, 4, [(0, 0), (0, 1)]))
    return tables


def test_a_stale_hit_is_named_with_its_request_and_versions(tmp_path):
    found = recorded(tmp_path, hit_after_update())
    says = "request 1 in engine step 4: 2 of 2 blocks hold keys and values of weight version 0, sampled under 1"
    assert found["stale-prefix-hits"] == f"1 hit: {says}"
    assert found["prefix-hits"] == "1 request, 4 tokens"
    says = "no reset of the cache with 1 of 1 weight changes: before engine step 4"
    assert found["prefix-caching-with-weight-updates"] == says
    assert "2 rollouts" in found["in-flight-update"]


def set_to(table, **columns):
    return lambda tables: tables[table].update(columns)


def no_change(tables):
    del tables["weights"]
    for name in ("tokens", "steps"):
        tables[name]["weight_version"][:] = 0
    tables["cache"] = make_cache((4, 1, 4, [(0, 0), (0, 0)]))


HARMLESS = {
    "no-change": no_change,
    "computed-anew": set_to("cache", min_weight_version=np.array([1, 1], "u4")),
    "not-known": set_to("cache", min_weight_version=np.ma.masked_all(2, "u4")),
    "same-fingerprints": set_to("weights", num_changed=np.array([0], "u4")),
    "another-adapter": set_to("weights", lora=["french"]),
}


RESET = ("reset_prefix_cache", {"args": [], "kwargs": {}})
PAUSE = ("pause_scheduler", {"args": ["abort"], "kwargs": {}})
EMPTIED = {
    "reset": (4, *RESET, True),
    "reset-under-running": (4, "reset_prefix_cache", {"args": [True, False], "kwargs": {}}, True),
    "pause": (4, *PAUSE, None),
}
NOT_EMPTIED = {
    "refused": (4, *RESET, False),
    "too-early": (3, *RESET, True),
    "too-late": (5, *RESET, True),
    "pause-that-keeps-it": (4, "pause_scheduler", {"args": ["abort"], "kwargs": {"clear_cache": False}}, None),
    "pause-that-is-pending": (4, *PAUSE, "pending"),
}


@pytest.mark.parametrize("row", EMPTIED.values(), ids=EMPTIED)
def test_an_update_with_an_emptied_cache_is_no_risk(tmp_path, row):
    tables = hit_after_update()
    control(tables, row)
    assert "prefix-caching-with-weight-updates" not in recorded(tmp_path, tables)


@pytest.mark.parametrize("row", NOT_EMPTIED.values(), ids=NOT_EMPTIED)
def test_an_update_without_one_is(tmp_path, row):
    tables = hit_after_update()
    control(tables, row)
    assert "prefix-caching-with-weight-updates" in recorded(tmp_path, tables)


def test_the_updates_that_were_not_followed_by_a_reset_are_counted(tmp_path):
    tables = engine(make_tables(2, 8))
    weights(tables, 2, 4, 6)
    control(tables, (2, *RESET, True), (6, *PAUSE, None))
    says = "no reset of the cache with 1 of 3 weight changes: before engine step 4"
    assert recorded(tmp_path, tables)["prefix-caching-with-weight-updates"] == says


@pytest.mark.parametrize("first_step", [0, 8])
def test_weights_that_come_before_the_first_step_or_after_the_last_find_no_block(tmp_path, first_step):
    tables = engine(make_tables(2, 8))
    weights(tables, first_step)
    assert "prefix-caching-with-weight-updates" not in recorded(tmp_path, tables)


def test_weights_that_come_between_the_last_two_steps_find_blocks(tmp_path):
    tables = engine(make_tables(2, 8))
    weights(tables, 7)
    says = "no reset of the cache with 1 of 1 weight changes: before engine step 7"
    assert recorded(tmp_path, tables)["prefix-caching-with-weight-updates"] == says


def test_salts_that_no_two_versions_share_keep_blocks_apart(tmp_path):
    tables = engine(make_tables(2, 8))
    weights(tables, 4)
    tables["tokens"]["weight_version"] = tables["tokens"]["request"].copy()  # a rollout a version
    tables["requests"]["cache_salt"] = ["wv0", "wv1"]
    assert "prefix-caching-with-weight-updates" not in recorded(tmp_path, tables)
    for salts in (["one", "one"], ["wv0", None]):
        tables["requests"]["cache_salt"] = salts
        (tmp_path / str(salts[1])).mkdir()
        assert "prefix-caching-with-weight-updates" in recorded(tmp_path / str(salts[1]), tables)


def test_a_connector_is_no_risk_where_each_reset_emptied_it_too(tmp_path):
    tables = engine(make_tables(2, 8), kv_transfer_config={"kv_connector": "x"})
    weights(tables, 4)
    control(tables, (4, *RESET, True))
    says = "no reset of the connector with 1 of 1 weight changes: before engine step 4"
    assert recorded(tmp_path, tables)["kv-connector-with-weight-updates"] == says
    control(tables, (4, "reset_prefix_cache", {"args": [], "kwargs": {"reset_connector": True}}, True))
    (tmp_path / "emptied").mkdir()
    assert "kv-connector-with-weight-updates" not in recorded(tmp_path / "emptied", tables)


def test_a_rollout_over_weights_that_did_not_change_is_under_one_version(tmp_path):
    tables = engine(make_tables(2, 8))
    weights(tables, 4)
    assert recorded(tmp_path, tables)["in-flight-update"].startswith("2 rollouts")
    for name, change in {"same": {"num_changed": np.array([0], "u4")}, "another": {"lora": ["french"]}}.items():
        tables["weights"] = make_weights(4, **change)
        (tmp_path / name).mkdir()
        assert "in-flight-update" not in recorded(tmp_path / name, tables)


@pytest.mark.parametrize("harmless", HARMLESS.values(), ids=HARMLESS)
def test_a_hit_that_cannot_be_stale_is_not_named(tmp_path, harmless):
    tables = hit_after_update()
    harmless(tables)
    assert "stale-prefix-hits" not in recorded(tmp_path, tables)


def test_a_hit_is_stale_where_its_own_adapter_changed(tmp_path):
    tables = hit_after_update()
    set_to("weights", lora=["french"])(tables)
    tables["requests"]["lora"][1] = "french"
    assert "request 1 in engine step 4" in recorded(tmp_path, tables)["stale-prefix-hits"]


def test_a_label_on_old_weights_makes_nothing_stale(tmp_path):
    tables = hit_after_update()
    tables["weights"]["label"][0] = "step-100"  # a row that names a version begins none
    assert "stale-prefix-hits" not in recorded(tmp_path, tables)


def resumed_on_unknown_blocks(kind="v0"):
    tables = make_tables(2, 8)
    tables["engines"] = make_engine(kind=kind, engine_version="0.8.5", config=config())
    row = np.flatnonzero((tables["scheduled"]["request"] == 1) & (tables["scheduled"]["engine_step"] == 5))
    tables["scheduled"]["flags"][row] = RESUMED | PREFILL
    tables["cache"] = make_cache((5, 1, 9, [(0, 0), (0, 0), (0, 0), (0, 0), (0, 0)]))
    for name in ("min_weight_version", "max_weight_version"):
        tables["cache"][name][3:] = np.ma.masked
    return tables


def test_a_resumption_on_blocks_that_others_wrote_is_named(tmp_path):
    says = recorded(tmp_path, resumed_on_unknown_blocks())["resumed-on-foreign-blocks"]
    assert says == "1 resumption: request 1 in engine step 5: 2 blocks"


def test_unknown_blocks_of_a_v1_engine_or_of_one_with_missing_steps_prove_nothing(tmp_path):
    assert "resumed-on-foreign-blocks" not in recorded(tmp_path, resumed_on_unknown_blocks("v1"))
    tables = resumed_on_unknown_blocks()
    tables["steps"] = {name: np.delete(values, 2) for name, values in tables["steps"].items()}
    (tmp_path / "hole").mkdir()
    assert "resumed-on-foreign-blocks" not in recorded(tmp_path / "hole", tables)


def test_only_the_blocks_that_are_older_than_a_real_change_are_counted(tmp_path):
    tables = hit_after_update()
    weights(tables, 4, 6)
    tables["weights"]["num_changed"] = np.array([3, 0], "u4")
    tables["steps"]["weight_version"][6:] = 2
    row = np.flatnonzero((tables["scheduled"]["request"] == 1) & (tables["scheduled"]["engine_step"] == 7))
    tables["scheduled"]["flags"][row] = RESUMED | PREFILL
    tables["cache"] = make_cache((7, 1, 7, [(1, 1), (0, 1), (2, 2), (1, 2)]))
    found = recorded(tmp_path, tables)["stale-prefix-hits"]
    assert "1 of 4 blocks hold keys and values of weight version 0, sampled under 2" in found


@pytest.mark.parametrize(
    ("arguments", "is_async", "rule"),
    [
        ({"args": ["keep", True], "kwargs": {}}, True, "pause-keep-deletes-a-token"),
        ({"args": [], "kwargs": {"mode": "keep"}}, True, "pause-keep-deletes-a-token"),
        ({"args": ["keep", True], "kwargs": {}}, False, "pause-keep-recomputes"),
        ({"args": ["keep", False], "kwargs": {}}, True, None),
        ({"args": ["abort", True], "kwargs": {}}, True, None),
    ],
)
def test_a_pause_that_keeps_the_rollouts_and_clears_their_cache(tmp_path, arguments, is_async, rule):
    tables = engine(make_tables(2, 8), scheduler_config={"async_scheduling": is_async})
    control(tables, (3, "pause_scheduler", arguments, None))
    found = recorded(tmp_path, tables)
    assert {r for r in found if r.startswith("pause-keep")} == ({rule} if rule else set())
    if rule:
        assert found[rule] == "running rollouts: 2, before engine step 3"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_pause_with_nothing_under_way_recomputes_and_deletes_nothing(tmp_path, is_async):
    tables = engine(make_tables(2, 8), scheduler_config={"async_scheduling": is_async})
    keep = {"args": ["keep", True], "kwargs": {}}
    control(tables, (0, "pause_scheduler", keep, None), (8, "pause_scheduler", keep, None))
    assert not [rule for rule in recorded(tmp_path, tables) if rule.startswith("pause-keep")]


def test_only_rollouts_that_go_on_after_a_pause_are_counted(tmp_path):
    tables = engine(make_tables(3, 8))
    scheduled = tables["scheduled"]
    late = (scheduled["request"] == 1) & (scheduled["engine_step"] < 5)  # begins after the pause
    over = (scheduled["request"] == 2) & (scheduled["engine_step"] >= 5)  # ends before it
    tables["scheduled"] = {name: values[~(late | over)] for name, values in scheduled.items()}
    control(tables, (5, "pause_scheduler", {"args": ["keep"], "kwargs": {}}, None))
    assert recorded(tmp_path, tables)["pause-keep-recomputes"] == "running rollouts: 1, before engine step 5"


def test_a_deleted_token_is_found_where_the_rollout_goes_on_without_it(tmp_path):
    tables = engine(make_tables(2, 8))
    tokens = {name: values.copy() for name, values in tables["tokens"].items()}
    mine = np.flatnonzero(tokens["request"] == 0)
    tokens["flags"][mine[3]] = DISCARDED
    tokens["position"][mine[4:]] -= 1  # what follows moves up by one, the engine's KV does not
    tables["tokens"] = tokens
    found = recorded(tmp_path, tables)
    assert found["deleted-token"] == "1 rollout: request 0 at position 8"


def test_a_token_that_was_discarded_and_sampled_anew_is_not_deleted(tmp_path):
    tables = engine(make_tables(2, 8))
    tables["tokens"] = {name: values.copy() for name, values in tables["tokens"].items()}
    last = np.flatnonzero(tables["tokens"]["request"] == 0)[-1]
    tables["tokens"]["flags"][last] = DISCARDED
    assert (tables["tokens"]["flags"] == ACCEPTED).sum() == 15
    assert "deleted-token" not in recorded(tmp_path, tables)


def adapters(tables, *places):
    """Request i names the adapter `policy`, from places[i] = (path, id), and runs alone: in steps 2i and 2i + 1."""
    scheduled = tables["scheduled"]
    own = scheduled["engine_step"] // 2 == scheduled["request"]
    tables["scheduled"] = {name: values[own] for name, values in scheduled.items()}
    tables["requests"] |= {"lora": ["policy"] * len(places), "lora_path": [path for path, _ in places]}
    tables["requests"]["lora_id"] = np.array([number for _, number in places], "u4")
    return tables


REUSED = {
    "0.8.5": [("/a", 1), ("/b", 1)],
    "0.18.1": [("/a", 1), ("/b", 2)],
    "0.32.0": [("/a", 1), ("/a", 2)],
}
NOT_REUSED = {
    "0.8.5": [("/a", 1), ("/b", 2)],
    "0.18.1": [("/a", 1), ("/a", 1)],
    "0.32.0": [("/a", 1), ("/b", 2)],
}


def of_version(tables, version):
    tables["engines"] = make_engine(kind="v0" if version == "0.8.5" else "v1", engine_version=version, config=config())
    return tables


@pytest.mark.parametrize("version", REUSED)
def test_an_adapter_that_requests_find_in_the_place_of_another(tmp_path, version):
    tables = of_version(adapters(make_tables(2, 8), *REUSED[version]), version)
    (path, first), (other, second) = REUSED[version]
    says = f"'policy' was {path} ({first}), then {other} ({second})"
    assert recorded(tmp_path, tables)["lora-name-reused"] == says
    control(tables, (2, *RESET, True))
    (tmp_path / "reset").mkdir()
    assert "lora-name-reused" not in recorded(tmp_path / "reset", tables)


@pytest.mark.parametrize("version", NOT_REUSED)
def test_an_adapter_whose_blocks_no_other_can_find(tmp_path, version):
    tables = of_version(adapters(make_tables(2, 8), *NOT_REUSED[version]), version)
    assert "lora-name-reused" not in recorded(tmp_path, tables)


def test_an_adapter_that_is_loaded_anew_under_its_name(tmp_path):
    tables = engine(adapters(make_tables(2, 8), ("/a", 1), ("/a", 1)))
    load = {"args": [{"lora_name": "policy", "lora_int_id": 1, "lora_path": "/b"}], "kwargs": {}}
    control(tables, (2, "add_lora", load, True))
    assert recorded(tmp_path, tables)["lora-name-reused"] == "'policy' was /a (1), then /b (1)"
    control(tables, (4, "add_lora", load, True))  # nothing ran with it any more
    (tmp_path / "late").mkdir()
    assert "lora-name-reused" not in recorded(tmp_path / "late", tables)


def test_seeds_beside_requests_without_one_on_the_cpu(tmp_path):
    tables = engine(make_tables(2, 8))
    tables["requests"]["sampling_params"][1] = json.dumps({"temperature": 1.0, "seed": 7})
    assert recorded(tmp_path, tables)["seeds-ignored"].startswith("8 engine steps")
    engine(tables, device_config={"device_type": "cuda"})
    (tmp_path / "gpu").mkdir()
    assert "seeds-ignored" not in recorded(tmp_path / "gpu", tables)


def test_preemptions_are_counted(tmp_path):
    tables = engine(make_tables(2, 8))
    tables["scheduled"]["flags"] = np.where(tables["scheduled"]["engine_step"] == 5, PREEMPTED, 0).astype("u1")
    assert recorded(tmp_path, tables)["preemptions"] == "2 preemptions of 2 requests"


def test_a_configuration_that_was_not_recorded_fires_nothing(tmp_path):
    assert recorded(tmp_path, make_tables(2, 8, sampling_params=ASKED)) == {}


def test_exit_codes_and_text(tmp_path):
    write_trace(tmp_path / "bad.arrow", [hit_after_update()])
    done = CliRunner().invoke(command, [str(tmp_path / "bad.arrow")], standalone_mode=False)
    assert done.return_value == 4 and "BREAKS PARITY  stale-prefix-hits" in done.output
    assert (
        "reset_prefix_cache() after each update" in done.output and "github.com/NVIDIA-NeMo/RL/pull/4018" in done.output
    )
    write_trace(tmp_path / "good.arrow", [make_tables(2, 8, sampling_params=ASKED)])
    assert CliRunner().invoke(command, [str(tmp_path / "good.arrow")], standalone_mode=False).return_value == 0
    batches = [make_tables(3, 8, first_request=3 * n, first_step=8 * n, engine=n == 0) for n in range(3)]
    spool = write_spool(tmp_path / "spool", batches, skip={2})
    done = CliRunner().invoke(command, [str(spool)], standalone_mode=False)
    assert done.return_value == 3 and "data was lost" in done.output
