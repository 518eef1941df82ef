"""What the recorder notes of generation_config.json."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tracekit.recorder.vllm.generation_config import generation_config


def config(model: object, source: object = "auto", read: Any = None) -> Any:
    fields = {"model": str(model), "hf_config_path": None, "revision": None, "generation_config": str(source)}
    return SimpleNamespace(**fields, try_get_generation_config=read or (lambda: {"temperature": 0.6}))


def hub(monkeypatch: pytest.MonkeyPatch, answer: object) -> None:
    module = ModuleType("huggingface_hub")
    module.try_to_load_from_cache = lambda *_args, **_kwargs: answer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_folder_is_read_as_vllm_reads_it(tmp_path: Path) -> None:
    assert generation_config(config(tmp_path)) == {"temperature": 0.6}
    assert generation_config(config("some/model", tmp_path)) == {"temperature": 0.6}


def test_of_a_name_only_what_is_in_the_cache_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "g.json").write_text('{"top_k": 20}')
    for answer, told in ((str(tmp_path / "g.json"), {"top_k": 20}), (None, None), (object(), {})):
        hub(monkeypatch, answer)
        assert generation_config(config("some/model", read=pytest.fail)) == told


def test_nothing_is_raised_into_the_engine(tmp_path: Path) -> None:
    def broken() -> None:
        raise OSError("no such file")

    assert generation_config(config(tmp_path, read=broken)) is None
