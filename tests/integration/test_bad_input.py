"""What people hand to commands by mistake: one sentence says what to do, and nothing is lost."""

import codecs
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tracekit
from helpers import replays
from helpers.factories import make_engine, make_tables, write_trace
from helpers.tiny_models import VOCAB, write_model
from tracekit.cli.main import main
from tracekit.errors import OutputError, UsageError
from tracekit.jobs.prompts import parse_prompts
from tracekit.replay.checkpoints import header


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "tiny", "llama")


@pytest.fixture
def trace(tmp_path: Path, model: Path) -> Path:
    engine = make_engine(logprobs_mode="processed_logprobs") | {"model": [str(model)]}
    tables = {**make_tables(4, 8, prompt_tokens=3), "engines": engine}
    tables["requests"]["prompt_token_ids"] = [ids % VOCAB for ids in tables["requests"]["prompt_token_ids"]]
    tables["tokens"]["token_id"] %= VOCAB
    write_trace(tmp_path / "t.arrow", [tables])
    return tmp_path / "t.arrow"


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]):
    """Runs a command in this process; returns its exit code and what it says on stderr."""

    def run(*args: object) -> tuple[object, str]:
        with pytest.raises(SystemExit) as done:
            main([str(arg) for arg in args])
        return done.value.code, capsys.readouterr().err

    return run


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def distributed(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "__0_0.distcp")


def adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 2 * config["intermediate_size"]}))


class Code:
    """What a pickle runs when it is read."""

    def __reduce__(self):
        return (print, ("code of a stranger",))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Code()}, folder / "pytorch_model.bin")


def not_finite(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


FOLDERS = {
    cut_off: "cannot be loaded",
    distributed: "convert a checkpoint of FSDP, DCP or Megatron first",
    adapter: "merge it into its base",
    other_shape: "of another shape than config.json says, the first model.layers.0.mlp",
    pickled: "save them as safetensors",
    not_finite: "look for NaN in the weights",
}


@pytest.mark.parametrize("spoil", FOLDERS, ids=lambda spoil: spoil.__name__)
def test_a_folder_that_cannot_be_scored_with_is_one_sentence(trace, model, tmp_path, said, spoil):
    folder = shutil.copytree(model, tmp_path / "spoilt")
    spoil(folder)
    code, err = said("replay", trace, "--model", folder, "--dtype", "float32")
    assert (code, err.count("\n")) == (1, 1) and FOLDERS[spoil] in err


def test_nothing_is_read_of_weights_that_are_cut_off(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "spoilt")
    assert header(folder / "model.safetensors")[1]
    cut_off(folder)
    assert header(folder / "model.safetensors") == (0, {})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Qwen/Qwen2.5-0.5B", "not fetched"),
        ("hf://a/b", "not fetched"),
        ("./there/is", ""),
        ("t.arrow", "it is a file"),
    ],
)
def test_a_name_that_is_no_folder_says_what_to_give(trace, said, monkeypatch, name, hint):
    monkeypatch.chdir(trace.parent)
    code, err = said("replay", trace, "--model", name)
    assert (code, err.count("\n")) == (1, 1) and "no model folder" in err and hint in err
    assert hint or "(" not in err


def test_a_damaged_trace_says_how_to_save_the_rest(trace, said):
    data = trace.read_bytes()
    trace.write_bytes(data[:-9])
    assert "`tracekit recover` saves" in said("info", trace)[1]
    trace.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1 :])
    assert "`tracekit recover` saves" in said("info", trace)[1]


def test_a_trace_is_not_taken_for_a_replay_nor_a_replay_for_a_trace(trace, tmp_path, said):
    replays.write(tmp_path / "replay.arrow")
    assert "`tracekit replay TRACE -o FILE` makes one" in said("check", trace)[1]
    assert "it is a replay, which `tracekit report`" in said("info", tmp_path / "replay.arrow")[1]


@pytest.mark.parametrize(
    "args",
    [
        ("replay", "t.arrow", "-o", "x", "--html", "./x"),
        ("report", "t.arrow", "-o", "x", "--perfetto", "x"),
        ("check", "t.arrow", "--junit", "x", "--sarif", "x"),
        ("record", "--engine", "v1", "-o", "x", "--completions", "x"),
        ("replay", "t.arrow", "--budget", "nan"),
        ("attach", "unix:/d.sock", "--start", "--sample", "nan"),
        ("mark", "unix:/d.sock", "--label", "x", "--timeout", "nan"),
        ("replay", "t.arrow", "--trainer-map", "old_logprob=logps"),
        ("demo", "--max-tokens", "0"),
        ("record", "-o", "x", "--"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error_before_anything_is_done(trace, said, monkeypatch, args):
    monkeypatch.chdir(trace.parent)
    assert said(*args)[0] == 2
    assert not (trace.parent / "x").exists()


def test_an_engine_that_there_is_not_is_told_before_anything_is_read():
    with pytest.raises(UsageError, match="v9"):
        tracekit.replay("nowhere.arrow", engine="v9")


def test_more_rows_than_there_are_is_all_of_them(trace, said):
    assert said("cat", trace, "tokens", "--head", 10**30) == (0, "")


def test_a_verdict_is_printed_where_its_file_cannot_be_written(trace, capsys, monkeypatch):
    def full(*_: object) -> None:
        raise OutputError("no space left")

    monkeypatch.setattr("tracekit.replay.output.write_replay", full)
    with pytest.raises(SystemExit) as done:
        main(["replay", str(trace), "--expect", "raw", "--dtype", "float32", "-o", str(trace.parent / "r.arrow")])
    out, err = capsys.readouterr()
    assert done.value.code == 1 and "no space left" in err and "VERDICT" in out


def test_text_that_begins_with_a_byte_order_mark_is_text(tmp_path, said):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_bytes(codecs.BOM_UTF8 + b'{"prompt": "hi"}\r\n')
    assert [request["prompt"] for request in parse_prompts(prompts)] == ["hi"]
    for name, text in (("engine.toml", 'dtype = "float32"\r\n'), ("engine.json", '{"dtype": "float32"}')):
        (tmp_path / name).write_bytes(codecs.BOM_UTF8 + text.encode())
        assert said("lint", "--engine-config", tmp_path / name) == (0, "")


@pytest.mark.parametrize(
    ("redirection", "code", "sentence"),
    [
        (">&-", 0, ""),
        (
            ">/dev/full",
            1,
            "tracekit: error: what was found cannot be written to standard output: No space left on device\n",
        ),
        ("| true; exit ${PIPESTATUS[0]}", 141, ""),
    ],
)
def test_an_output_that_takes_nothing_ends_without_a_traceback(trace, redirection, code, sentence):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m tracekit info {trace} {redirection}"], stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stderr) == (code, sentence)
