"""`tracekit replay` once more on the same trace: the same verdict to the byte, interrupted, bounded or neither."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.factories import make_engine, make_tables, write_trace
from helpers.tiny_models import VOCAB, write_model
from tracekit.cli.main import main
from tracekit.errors import ModelError, ReplayRefused
from tracekit.replay import running
from tracekit.replay.checkpoints import refuse_changed, weights_digest
from tracekit.replay.output import read_replay
from tracekit.replay.runner import replay
from tracekit.replay.scorers import Model, ScorerLike, torch_loader
from tracekit.scoring.params import Params
from tracekit.scoring.scorer import Scorer
from tracekit.scoring.spans import whole
from tracekit.scoring.types import Sequence
from tracekit.trace.reader import open_trace

COUNT, LENGTH, PROMPT = 12, 16, 5


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A trace of 12 rollouts with made-up values, which diverge, and float32 weights that its engine cast."""
    folder = tmp_path_factory.mktemp("again")
    model = write_model(folder / "tiny", "llama")
    rng = np.random.default_rng(3)
    config = json.dumps({"vllm": {"model_config": {"dtype": "torch.bfloat16"}}})
    tables = make_tables(COUNT, LENGTH, engine=make_engine(logprobs_mode="raw_logprobs", config=config))
    tables["requests"]["prompt_token_ids"] = [rng.integers(3, VOCAB, PROMPT).astype("u4") for _ in range(COUNT)]
    tables["tokens"]["token_id"] = rng.integers(3, VOCAB, COUNT * LENGTH).astype("u4")
    write_trace(folder / "t.arrow", [tables])
    return folder / "t.arrow", model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "replay"


@pytest.fixture
def run(recorded: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> Any:
    def call(*options: str) -> tuple[int | str | None, str]:
        with pytest.raises(SystemExit) as done:
            main(["replay", str(recorded[0]), "--model", str(recorded[1]), "--expect", "raw", "--device", "cpu",
                  "--max-batch-tokens", "64", *options])  # fmt: skip
        return done.value.code, capsys.readouterr().out

    return call


def told(printed: tuple[int, str]) -> tuple[int, str]:
    """The status and the JSON without what a clock and the machine say."""
    code, out = printed
    facts = json.loads(out)
    del facts["scoring"]["secs"], facts["scoring"]["peak_bytes"]
    return code, json.dumps(facts)


def test_twice_is_the_same_to_the_byte(run: Any, tmp_path: Path) -> None:
    one, other = (told(run("--json", "-o", str(tmp_path / name))) for name in ("a.arrow", "b.arrow"))
    assert one == other and one[0] == 4
    first, second = (read_replay(tmp_path / name) for name in ("a.arrow", "b.arrow"))
    assert first.tokens.equals(second.tokens) and first.timeline == second.timeline


def test_after_ctrl_c_the_same_command_goes_on_and_says_what_it_says_in_one_go(
    run: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole_run = told(run("--json"))
    assert not cache.exists()
    scored: list[int] = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        if len(scored) == 3:
            signal.raise_signal(signal.SIGINT)
        scored.append(0)
        return score_unit(*args, **kwargs)

    score_unit = running.score_unit
    monkeypatch.setattr(running, "score_unit", counting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs us in the background ignores it
    code, out = run("--json")
    signal.signal(signal.SIGINT, before)
    assert (code, out) == (1, "") and len(list(cache.glob("*.npz"))) == 3
    scored.append(0)
    assert told(run("--json")) == whole_run
    gone_on = len(scored) - 4
    scored.clear()
    monkeypatch.setattr(running, "score_unit", lambda *args: scored.append(0) or score_unit(*args))
    assert told(run("--json")) == whole_run and len(scored) == gone_on + 3
    assert not cache.exists()


def test_a_budget_scores_a_part_says_so_and_twice_the_same(run: Any) -> None:
    code, out = run("--budget", "0.000001")
    assert code == 4
    assert "SAMPLE: 1 of 12 rollouts, 16 of 192 tokens, spread evenly: what 1e-06 s allow; a first token is" in out
    one, other = (told(run("--budget", "0.000001", "--json")) for _ in range(2))
    assert one == other
    sample = json.loads(one[1])["data"]["sample"]
    assert sample == {"budget_secs": 1e-06, "num_rollouts": 12, "num_tokens": 192}
    assert json.loads(told(run("--budget", "3600", "--json"))[1])["data"]["num_rollouts"] == 12


def test_weights_that_change_while_they_are_scored_give_no_verdict(recorded: tuple[Path, Path], tmp_path: Path) -> None:
    """A trainer that overwrites its checkpoint: the noise floor would be that between two models, and all within it."""
    model, load = shutil.copytree(recorded[1], tmp_path / "model"), torch_loader("cpu")

    def overwritten(folder: Path, how: Model) -> ScorerLike:
        scorer = load(folder, how)
        write_model(model, "llama", seed=7)
        return scorer

    with pytest.raises(ReplayRefused, match=r"changed while they were scored.*: .*/model"):
        replay(recorded[0], model, expect="raw", load=overwritten)
    before = {model: weights_digest(model)}
    os.utime(model / "model.safetensors", (0, 0))  # the same once more
    refuse_changed(before)
    shutil.rmtree(model)  # all that was loaded is of what was there
    refuse_changed(before)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantized_weights_without_their_scales_are_not_taken_for_weights(
    recorded: tuple[Path, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    model = Path(shutil.copytree(recorded[1], tmp_path / "model"))
    tensors = load_file(model / "model.safetensors")
    save_file({name: t.to(dtype) for name, t in tensors.items()}, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"stored as (I8|F8_E4M3), and config\.json has no quantization_config"):
        replay(open_trace(recorded[0]), model, expect="raw", device="cpu")


def test_what_casting_the_stored_weights_does_is_measured_on_a_sample(run: Any, recorded: tuple[Path, Path]) -> None:
    masters = json.loads(run("--json")[1])["verdict"]["masters"]
    assert masters["num_tokens"] == LENGTH  # a share of 0.15 of the trainer's pass is one rollout of 12
    trace = open_trace(recorded[0])
    prompt = trace.table("requests")["prompt_token_ids"][0].as_py()
    ids = trace.table("tokens")["token_id"].to_numpy()[:LENGTH]
    span = whole(Sequence(0, 0, np.array(prompt, "u4"), ids, Params()))
    stored, cast = (
        Scorer.load(recorded[1], dtype="float32", weights=weights, device="cpu")
        .score([span], max_batch_tokens=64)[0].readings[0].raw_logprob
        for weights in (None, "bfloat16")
    )  # fmt: skip
    assert masters["d_abs_mean"] == pytest.approx(np.abs(stored - cast).mean(), rel=1e-3) and masters["d_abs_mean"] > 0
    assert masters["d_abs_max"] == pytest.approx(np.abs(stored - cast).max(), rel=1e-3)


def test_what_nobody_went_on_with_in_a_week_is_removed_by_the_next_run(run: Any, cache: Path) -> None:
    cache.mkdir(parents=True)
    for name, days in (("old.npz", 8), ("new.npz", 6)):
        (cache / name).touch()
        os.utime(cache / name, (time.time() - days * 86400,) * 2)
    run()
    assert [path.name for path in cache.iterdir()] == ["new.npz"]
