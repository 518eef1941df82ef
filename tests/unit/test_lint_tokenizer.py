"""The trainer's tokenizer, special tokens, chat template and vocabulary beside the engine's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_lint_outside import LLAMA, model_folder, recorded, tables

TOKENIZER = {
    "model": {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2}},
    "added_tokens": [{"id": 3, "content": "<|end|>"}],
    "post_processor": None,
}
SETTINGS = {"bos_token": "<s>", "add_bos_token": False, "chat_template": "{{ messages }}"}


def folder(path: Path, tokenizer: Any = TOKENIZER, settings: Any = SETTINGS, config: Any = LLAMA) -> Path:
    model_folder(path, config)
    if tokenizer is not None:
        (path / "tokenizer.json").write_text(json.dumps(tokenizer))
        (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


def found(tmp_path: Path, engine: Path, trainer: Path) -> dict[str, str]:
    rows = tables({}, hf=json.loads((engine / "config.json").read_text()))
    rows["engines"]["model"] = [str(engine)]
    fired = recorded(tmp_path, rows, trainer)
    return {rule: detail for rule, detail in fired.items() if rule.startswith("trainer-")}


DIFFERENT = {
    "trainer-tokenizer-differs": (
        {"tokenizer": {**TOKENIZER, "added_tokens": [{"id": 4, "content": "<|end|>"}]}},
        "1 token has other ids, as '<|end|>' is 3 in the engine, '<|end|>' is 4 in the folder",
    ),
    "trainer-special-tokens-differ": (
        {"settings": {**SETTINGS, "add_bos_token": True}, "config": {**LLAMA, "eos_token_id": 5}},
        "eos_token_id 2 in the engine, 5 in the folder; add_bos_token False in the engine, True in the folder",
    ),
    "trainer-chat-template-differs": (
        {"settings": {**SETTINGS, "chat_template": "{{ message }}"}},
        "they part at character 10: 's }}' in the engine, ' }}' in the folder",
    ),
    "trainer-vocabulary-padded": (
        {"config": {**LLAMA, "vocab_size": 128, "eos_token_id": 2}},
        "28 rows more in the folder's head: vocab_size 100 and 128",
    ),
}


@pytest.mark.parametrize("rule", DIFFERENT)
def test_what_differs_is_named_and_nothing_else(tmp_path: Path, rule: str) -> None:
    changes, says = DIFFERENT[rule]
    engine = folder(tmp_path / "engine", config={**LLAMA, "eos_token_id": 2})
    trainer = folder(tmp_path / "trainer", **{"config": {**LLAMA, "eos_token_id": 2}, **changes})
    assert found(tmp_path, engine, trainer) == {rule: says}


def test_the_same_files_are_the_same(tmp_path: Path) -> None:
    engine, trainer = folder(tmp_path / "engine"), folder(tmp_path / "trainer")
    (trainer / "chat_template.jinja").write_text("{{ messages }}")  # transformers 5 keeps it in a file of its own
    (trainer / "tokenizer_config.json").write_text(json.dumps({**SETTINGS, "bos_token": {"content": "<s>"}}))
    assert found(tmp_path, engine, trainer) == {}


def test_a_post_processor_that_adds_a_token_makes_other_ids(tmp_path: Path) -> None:
    added = {**TOKENIZER, "post_processor": {"type": "TemplateProcessing"}}
    engine, trainer = folder(tmp_path / "engine"), folder(tmp_path / "trainer", added)
    assert found(tmp_path, engine, trainer) == {"trainer-tokenizer-differs": "post_processor differs"}


def test_an_engine_whose_tokenizer_is_elsewhere_is_not_compared(tmp_path: Path) -> None:
    engine, trainer = folder(tmp_path / "engine"), folder(tmp_path / "trainer")
    (engine / "tokenizer.json").unlink()
    (engine / "tokenizer_config.json").unlink()
    says = "nothing could be compared: the folder of the engine's tokenizer is not here"
    assert found(tmp_path, engine, trainer) == {"trainer-tokenizer-unknown": says}
    bare = folder(tmp_path / "bare", tokenizer=None)
    assert found(tmp_path, engine, bare) == {}


ROPE = {"rope_type": "yarn", "rope_theta": 100000.0, "factor": 4.0}


@pytest.mark.parametrize("side", ["engine", "folder"])
def test_scaled_positions_on_one_side_alone_are_another_model(tmp_path: Path, side: str) -> None:
    """SkyRL PR#976: the override reached the engine only, and the trainer's config.json does not name it."""
    plain = {name: value for name, value in LLAMA.items() if name not in ("rope_scaling", "rope_theta")}
    scaled = {**plain, "rope_parameters": ROPE}
    engine = folder(tmp_path / "engine", None, config=scaled if side == "engine" else plain)
    trainer = folder(tmp_path / "trainer", None, config=scaled if side == "folder" else plain)
    says = found(tmp_path, engine, trainer)["trainer-config-differs"]
    own = "{'rope_type': 'yarn', 'factor': 4.0}"
    assert says == (
        f"rope_scaling {own} in the engine, None in the folder"
        if side == "engine"
        else f"rope_scaling None in the engine, {own} in the folder"
    )


def test_a_model_class_that_scales_by_default_need_not_say_so(tmp_path: Path) -> None:
    engine = folder(tmp_path / "engine", None, config={"model_type": "gpt_oss", "rope_parameters": ROPE})
    trainer = folder(tmp_path / "trainer", None, config={"model_type": "gpt_oss", "rope_theta": 100000.0})
    fired = found(tmp_path, engine, trainer)
    assert "trainer-config-differs" not in fired and "rope_scaling" in fired["trainer-config-unsaid"]
