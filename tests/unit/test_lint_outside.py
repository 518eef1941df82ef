"""What changes an engine's numbers from outside: sampling defaults, overrides, a trainer's model folder, adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from helpers.factories import make_engine, make_tables, make_weights, write_trace
from tracekit.audit.lint.from_file import subject_of
from tracekit.audit.lint.from_trace import subjects_of
from tracekit.audit.lint.run import lint
from tracekit.audit.lint.trainer import read_trainer
from tracekit.cli.lint import command
from tracekit.errors import UsageError
from tracekit.trace.reader import open_trace

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "rope_scaling": None,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
FILE = {"temperature": 0.6, "top_p": 0.95, "repetition_penalty": 1.05}


def tables(params: dict[str, Any], *, file: Any = None, version: str = "0.18.1", hf: Any = None, **model: Any) -> Any:
    found = make_tables(3, 8, sampling_params={"logprobs": 0, **params})
    settings: dict[str, Any] = {"vllm": {"model_config": {"generation_config": "auto", "dtype": "float32", **model}}}
    settings |= {} if file is None else {"generation_config": file}
    settings |= {} if hf is None else {"hf_config": hf}
    found["engines"] = make_engine(config=json.dumps(settings), engine_version=version)
    return found


def recorded(folder: Path, rows: Any, trainer: Path | None = None) -> dict[str, str]:
    path = folder / f"{len(list(folder.iterdir()))}.arrow"
    write_trace(path, [rows])
    (subject,) = subjects_of(open_trace(path), None if trainer is None else read_trainer(trainer))
    return {one.rule.id: one.detail for one in lint([subject])}


def before_a_run(**arguments: Any) -> dict[str, str]:
    subject, unread = subject_of({"generation_config": "vllm", **arguments}, "v1", "f")
    assert unread == []
    return {one.rule.id: one.detail for one in lint([subject])}


def model_folder(folder: Path, config: Any = LLAMA, generation: Any = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_each_value_of_the_file_is_named_with_its_source(tmp_path: Path) -> None:
    found = recorded(tmp_path, tables({"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.05}, file=FILE))
    assert found["generation-config-sampling"] == "3 of 3 requests: temperature 0.6, repetition_penalty 1.05"
    says = "3 of 3 requests: temperature 0.6 (generation_config.json)"
    assert found["raw-logprobs-with-temperature"] == says
    assert found["raw-logprobs-with-truncation"] == "3 of 3 requests: top_p 0.9 (the client)"


@pytest.mark.parametrize("file", [{}, FILE, {"repetition_penalty": 1.2}])
def test_penalties_that_the_client_set_are_not_blamed_on_the_file(tmp_path: Path, file: dict[str, float]) -> None:
    found = recorded(tmp_path, tables({"temperature": 1.0, "repetition_penalty": 1.1}, file=file))
    assert "generation-config-sampling" not in found
    assert found["raw-logprobs-with-penalties"] == "3 of 3 requests: repetition_penalty 1.1 (the client)"


def test_a_file_that_is_not_read_sets_nothing(tmp_path: Path) -> None:
    params = {"temperature": 0.6}
    assert "generation-config-sampling" not in recorded(tmp_path, tables(params, file=FILE, generation_config="vllm"))
    assert "generation-config-sampling" in recorded(tmp_path, tables(params, file=FILE))


@pytest.mark.parametrize(("version", "source"), [("0.18.1", "the client"), ("0.32.0", "generation_config.json")])
def test_only_a_late_engine_takes_every_penalty_from_the_file(tmp_path: Path, version: str, source: str) -> None:
    rows = tables({"temperature": 1.0, "presence_penalty": 1.5}, file={"presence_penalty": 1.5}, version=version)
    assert recorded(tmp_path, rows)["raw-logprobs-with-penalties"].endswith(f"presence_penalty 1.5 ({source})")


def test_a_tiny_temperature_of_the_file_is_known_again_after_it_was_raised(tmp_path: Path) -> None:
    found = recorded(tmp_path, tables({"temperature": 0.01}, file={"temperature": 1e-6}))
    assert found["generation-config-sampling"] == "3 of 3 requests: temperature 0.01"


def test_what_an_older_trace_lacks_is_read_from_the_model_folder(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", generation=FILE)
    rows = tables({"temperature": 0.6})
    rows["engines"]["model"] = [str(folder)]
    assert recorded(tmp_path, rows)["generation-config-sampling"] == "3 of 3 requests: temperature 0.6"
    rows = tables({"temperature": 0.6}, generation_config=str(folder))
    assert recorded(tmp_path, rows)["generation-config-sampling"] == "3 of 3 requests: temperature 0.6"


def test_where_the_file_is_not_known_penalties_are_the_clients_or_the_files(tmp_path: Path) -> None:
    found = recorded(tmp_path, tables({"temperature": 0.6, "repetition_penalty": 1.1}))
    says = "from the client or a file: the generation_config.json of generation_config 'auto' is not known here"
    assert found["generation-config-sampling"] == f"3 of 3 requests: repetition_penalty 1.1, {says}"
    assert "generation-config-sampling" not in recorded(tmp_path, tables({"temperature": 0.6}))


def test_defaults_of_the_engines_arguments_are_its_own(tmp_path: Path) -> None:
    override = {"temperature": 0.8, "max_new_tokens": 5}
    found = recorded(tmp_path, tables({"temperature": 0.8}, file=FILE, override_generation_config=override))
    assert found["engine-sampling-defaults"] == "3 of 3 requests: temperature 0.8"
    assert "generation-config-sampling" not in found
    assert "temperature 0.8 (override_generation_config)" in found["raw-logprobs-with-temperature"]
    found = recorded(tmp_path, tables({"temperature": 0.7}, file=FILE, override_generation_config=override))
    assert "engine-sampling-defaults" not in found


def test_before_a_run_what_requests_leave_open_is_filled_in(tmp_path: Path) -> None:
    model = str(model_folder(tmp_path / "model", generation=FILE))
    auto = {"generation_config": "auto", "model": model}
    says = "generation_config.json sets top_p 0.95, repetition_penalty 1.05"
    assert before_a_run(**auto, sampling={"temperature": 0.7})["generation-config-sampling"] == says
    named = {"temperature": 1.0, "top_p": 1.0, "repetition_penalty": 1.0}
    assert "generation-config-sampling" not in before_a_run(**auto, sampling=named)
    assert "generation-config-sampling" not in before_a_run(model=model)
    unknown = before_a_run(generation_config="auto", model="some/model", sampling=named)["generation-config-sampling"]
    assert unknown.endswith("requests do not name top_k, min_p, presence_penalty, frequency_penalty")
    override = before_a_run(override_generation_config={"top_k": 20, "min_p": 0.0})
    assert override["engine-sampling-defaults"] == "override_generation_config sets top_k 20"


def test_overrides_of_the_model_are_named(tmp_path: Path) -> None:
    overrides = {"rope_theta": 1e6, "head_dtype": "float32"}
    assert (
        recorded(tmp_path, tables({}, hf_overrides=overrides))["overridden-config"]
        == "hf_overrides rope_theta=1000000.0"
    )
    assert "overridden-config" not in recorded(tmp_path, tables({}, hf_overrides={"head_dtype": "float32"}))
    assert "overridden-config" not in recorded(tmp_path, tables({}, hf_overrides={}))
    function = recorded(tmp_path, tables({}, hf_overrides="<function f>"))
    assert function["overridden-config"] == "hf_overrides <function f>"
    found = recorded(tmp_path, tables({}, hf_config_path="/other", rope_theta=5.0))  # the second is V0's
    assert found["overridden-config"] == 'hf_config_path "/other", rope_theta 5.0'


def test_overrides_that_the_trainer_has_as_well_are_no_risk(tmp_path: Path) -> None:
    same = model_folder(tmp_path / "same", {**LLAMA, "rope_theta": 1e6})
    rows = tables({}, hf_overrides={"rope_theta": 1e6}, hf={**LLAMA, "rope_theta": 1e6})
    assert not {"overridden-config", "trainer-config-differs"} & set(recorded(tmp_path, rows, same))
    found = recorded(tmp_path, rows, model_folder(tmp_path / "other"))
    assert found["trainer-config-differs"] == "rope_theta 1000000.0 in the engine, 100000.0 in the folder"
    assert "overridden-config" in found


@pytest.mark.parametrize("name", ["dummy", "DUMMY"])  # V0 writes it so
def test_random_weights_are_no_risk_once_others_were_loaded(tmp_path: Path, name: str) -> None:
    rows = tables({})
    rows["engines"]["config"] = [json.dumps({"vllm": {"load_config": {"load_format": name}}})]
    says = "load_format is 'dummy', tokens sampled before anything was loaded: 24"
    assert recorded(tmp_path, rows)["random-weights"] == says
    for table in ("tokens", "steps"):
        rows[table]["weight_version"][:] = 1
    rows["weights"] = make_weights(0)
    assert "random-weights" not in recorded(tmp_path, rows)
    assert "random-weights" not in before_a_run(load_format="dummy", weight_update={"mode": "abort"})


DIFFERENT = {
    "eps": ({"rms_norm_eps": 1e-6}, "rms_norm_eps 1e-06 in the engine, 1e-05 in the folder"),
    "vocabulary": ({"vocab_size": 128}, "vocab_size 128 in the engine, 100 in the folder"),
    "tied": ({"tie_word_embeddings": True}, "tie_word_embeddings True in the engine, False in the folder"),
    "theta of transformers 5": (
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "rope_theta 500000.0 in the engine, 100000.0 in the folder",
    ),
    "scaling": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        "rope_scaling {'factor': 2.0, 'rope_type': 'linear'} in the engine, None in the folder",
    ),
}


@pytest.mark.parametrize(("engine", "says"), DIFFERENT.values(), ids=DIFFERENT)
def test_a_trainers_folder_that_describes_another_model(tmp_path: Path, engine: dict[str, Any], says: str) -> None:
    folder = model_folder(tmp_path / "trainer")
    found = recorded(tmp_path, tables({}, hf={**LLAMA, **engine}), folder)
    assert found["trainer-config-differs"] == says


SAME = {
    "the same": {},
    "how long a text may be": {"max_position_embeddings": 4096},
    "bookkeeping": {"torch_dtype": "float32", "transformers_version": "5.0", "pad_token_id": 7, "_name_or_path": "x"},
    "defaults of the class": {"head_dim": 64, "use_cache": True, "temperature": 1.0, "layer_types": ["full_attention"]},
    "theta of transformers 5": {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    "a window that is not used": {"sliding_window": 4096, "use_sliding_window": False},
}


@pytest.mark.parametrize("engine", SAME.values(), ids=SAME)
def test_a_trainers_folder_that_describes_the_same_model(tmp_path: Path, engine: dict[str, Any]) -> None:
    folder = model_folder(tmp_path / "trainer")
    found = recorded(tmp_path, tables({}, hf={**LLAMA, **engine}), folder)
    assert not [rule for rule in found if rule.startswith("trainer-config")]


def test_a_v0_engine_does_not_read_what_transformers_5_wrote(tmp_path: Path) -> None:
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    folder = model_folder(tmp_path / "trainer", {"model_type": "llama", **rope})
    rows = tables({}, hf={"model_type": "llama", "rope_theta": 10000.0, "rope_scaling": None, **rope})
    assert "trainer-config-differs" not in recorded(tmp_path, rows, folder)
    rows["engines"]["kind"] = ["v0"]
    found = recorded(tmp_path, rows, folder)
    assert found["trainer-config-differs"] == "rope_theta 10000.0 in the engine, 500000.0 in the folder"


def test_two_thetas_have_two_names_each(tmp_path: Path) -> None:
    whole, local = {"rope_type": "default", "rope_theta": 1e6}, {"rope_type": "default", "rope_theta": 1e4}
    folder = model_folder(tmp_path / "trainer", {"rope_theta": 1e6, "rope_local_base_freq": 1e4})
    late = {"rope_parameters": {"full_attention": whole, "sliding_attention": local}}
    assert not [r for r in recorded(tmp_path, tables({}, hf=late), folder) if r.startswith("trainer-config")]
    late["rope_parameters"]["sliding_attention"]["rope_theta"] = 5e3
    found = recorded(tmp_path, tables({}, hf=late), folder)
    assert found["trainer-config-differs"] == "rope_local_base_freq 5000.0 in the engine, 10000.0 in the folder"


def test_a_soft_cap_that_only_one_side_names(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "trainer")
    found = recorded(tmp_path, tables({}, hf={**LLAMA, "final_logit_softcapping": 30.0}), folder)
    assert found["trainer-config-unsaid"] == "final_logit_softcapping 30.0 in the engine only"
    capped = model_folder(tmp_path / "capped", {**LLAMA, "final_logit_softcapping": 50.0})
    found = recorded(tmp_path, tables({}, hf={**LLAMA, "final_logit_softcapping": 30.0}), capped)
    assert found["trainer-config-differs"] == "final_logit_softcapping 30.0 in the engine, 50.0 in the folder"
    assert "trainer-config-unsaid" not in found


def test_the_text_part_of_a_model_of_several_inputs_is_compared(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "trainer", {"model_type": "gemma3", "text_config": {"rms_norm_eps": 1e-6}})
    found = recorded(tmp_path, tables({}, hf={"model_type": "gemma3", "text_config": {"rms_norm_eps": 1e-5}}), folder)
    assert found["trainer-config-differs"] == "rms_norm_eps 1e-05 in the engine, 1e-06 in the folder"


def test_a_trace_without_a_configuration_cannot_be_compared(tmp_path: Path) -> None:
    found = recorded(tmp_path, tables({}), model_folder(tmp_path / "trainer"))
    assert found["trainer-config-unsaid"].startswith("nothing could be compared")


def test_sampling_parameters_in_the_trainers_folder_are_compared_with_what_was_sampled(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "trainer", generation={**FILE, "top_k": -1, "do_sample": True})
    found = recorded(tmp_path, tables({"temperature": 1.0, "top_p": 0.95, "top_k": 0}, hf=LLAMA), folder)
    says = "temperature 1, in the folder 0.6, repetition_penalty 1, in the folder 1.05"
    assert found["trainer-generation-config-differs"] == f"3 of 3 requests: {says}"
    assert "trainer-generation-config-differs" not in recorded(tmp_path, tables({**FILE}, hf=LLAMA), folder)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, "is a folder with a config.json"),
        ({}, "there is no config.json"),
        ({"config.json": "{"}, "is not JSON"),
        ({"config.json": "[]"}, "is not an object"),
        ({"config.json": "{}", "generation_config.json": "3"}, "is not an object"),
    ],
)
def test_a_folder_that_is_none_is_a_usage_error(tmp_path: Path, files: dict[str, str] | None, says: str) -> None:
    write_trace(tmp_path / "t.arrow", [tables({})])
    folder = tmp_path / "trainer"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    done = CliRunner().invoke(command, [str(tmp_path / "t.arrow"), "--trainer-config", str(folder)])
    assert isinstance(done.exception, UsageError) and says in str(done.exception)


def test_the_command_compares_and_needs_a_trace(tmp_path: Path) -> None:
    write_trace(tmp_path / "t.arrow", [tables({}, hf={**LLAMA, "vocab_size": 128})])
    folder = model_folder(tmp_path / "trainer")
    arguments = [str(tmp_path / "t.arrow"), "--trainer-config", str(folder)]
    done = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert done.return_value == 4 and "BREAKS PARITY  trainer-config-differs" in done.output
    (tmp_path / "e.json").write_text("{}")
    done = CliRunner().invoke(command, ["--engine-config", str(tmp_path / "e.json"), "--trainer-config", str(folder)])
    assert isinstance(done.exception, UsageError) and "needs a TRACE" in str(done.exception)


def test_an_adapter_that_a_part_of_the_requests_names(tmp_path: Path) -> None:
    rows = make_tables(3, 8)
    rows["requests"]["lora"] = ["policy", None, "policy"]
    says = "2 of 3 requests name an adapter ('policy'), the others do not"
    assert recorded(tmp_path, rows)["adapter-on-some-requests"] == says
    for names in (["policy"] * 3, [None] * 3):
        rows["requests"]["lora"] = names
        assert "adapter-on-some-requests" not in recorded(tmp_path, rows)
