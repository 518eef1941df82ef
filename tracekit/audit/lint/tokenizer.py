"""The trainer's tokenizer beside the engine's: other ids for the same text, and texts put together otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tracekit.audit.lint.types import BREAKS, NOTE, RISK, Rule, Subject
from tracekit.plural import plural

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SETTINGS = ("bos_token", "eos_token", "pad_token", "add_bos_token", "add_eos_token", "add_prefix_space")
_PARTS = ("normalizer", "pre_tokenizer", "post_processor")


@dataclass(frozen=True)
class Tokenizer:
    """The files of a folder that make ids of a text."""

    ids: Mapping[str, int]  # token to id, added ones included; empty where there is no tokenizer.json
    parts: Mapping[str, Any]  # how a text is cut and what is added to it, as JSON has it
    settings: Mapping[str, Any]
    template: str | None


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """Read a folder's tokenizer; None where it has none that can be read."""
    whole, settings = _object(folder / TOKENIZER), _object(folder / SETTINGS)
    if not whole and not settings:
        return None
    vocab = (whole.get("model") or {}).get("vocab")
    ids = dict(vocab) if isinstance(vocab, dict) else {}
    ids |= {token["content"]: token["id"] for token in whole.get("added_tokens") or []}
    file = folder / TEMPLATE
    template = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    return Tokenizer(
        ids,
        {name: whole.get(name) for name in _PARTS if whole},
        settings,
        template if isinstance(template, str) else None,
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except (OSError, ValueError):
        return {}


@lru_cache(maxsize=8)  # rules ask one by one, and a vocabulary takes a while
def _parsed(path: Path, written_ns: int) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {}


def _both(subject: Subject) -> tuple[Tokenizer, Tokenizer] | None:
    """The engine's tokenizer, read from where it loaded it, and the trainer's."""
    if subject.trainer is None or (where := _engine_folder(subject)) is None:
        return None
    engine, trainer = read_tokenizer(where), read_tokenizer(Path(subject.trainer.folder))
    return None if engine is None or trainer is None else (engine, trainer)


def _engine_folder(subject: Subject) -> Path | None:
    if subject.rows is None:
        return None
    named = subject.rows.setting("model_config", "tokenizer") or subject.rows.about.get("model")
    return Path(named) if named and Path(named).is_dir() else None


def _unknown(subject: Subject) -> str | None:
    if subject.trainer is None or read_tokenizer(Path(subject.trainer.folder)) is None or _both(subject):
        return None
    return "nothing could be compared: the folder of the engine's tokenizer is not here"


def _other_ids(subject: Subject) -> str | None:
    if (both := _both(subject)) is None:
        return None
    engine, trainer = both
    parts = []
    if engine.ids and trainer.ids and engine.ids != trainer.ids:
        tokens = [t for t in engine.ids.keys() | trainer.ids.keys() if engine.ids.get(t) != trainer.ids.get(t)]
        first = min(tokens, key=lambda t: (engine.ids.get(t, trainer.ids.get(t, 0)), t))
        said = (f"{first!r} is {ids.get(first, 'unknown')} in the {name}" for ids, name in
                ((engine.ids, "engine"), (trainer.ids, "folder")))  # fmt: skip
        parts.append(f"{plural(len(tokens), 'token has', 'tokens have')} other ids, as {', '.join(said)}")
    names = [n for n in engine.parts.keys() & trainer.parts.keys() if engine.parts[n] != trainer.parts[n]]
    parts += [f"{name} differs" for name in sorted(names)]
    return "; ".join(parts) or None


def _special(subject: Subject) -> str | None:
    if subject.trainer is None:
        return None
    return "; ".join([*_special_ids(subject), *_special_settings(subject)]) or None


def _special_ids(subject: Subject) -> Iterator[str]:
    assert subject.trainer is not None
    engine, trainer = subject.hf_config, subject.trainer.config
    for name in _IDS:
        one, other = engine.get(name), trainer.get(name)
        if None not in (one, other) and one != other:
            yield f"{name} {one} in the engine, {other} in the folder"


def _special_settings(subject: Subject) -> Iterator[str]:
    if (both := _both(subject)) is None:
        return
    engine, trainer = (side.settings for side in both)
    for name in _SETTINGS:
        one, other = _text(engine.get(name)), _text(trainer.get(name))
        if one != other and (one or other):
            yield f"{name} {one} in the engine, {other} in the folder"


def _text(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value


def _template(subject: Subject) -> str | None:
    if (both := _both(subject)) is None:
        return None
    engine, trainer = (side.template for side in both)
    if engine == trainer:
        return None
    if None in (engine, trainer):
        return f"only the {'folder' if engine is None else 'engine'} has one"
    assert engine is not None and trainer is not None
    at = next(
        (i for i, (a, b) in enumerate(zip(engine, trainer, strict=False)) if a != b), min(len(engine), len(trainer))
    )
    return (
        f"they part at character {at}: {engine[at : at + 24]!r} in the engine, {trainer[at : at + 24]!r} in the folder"
    )


def _padded(subject: Subject) -> str | None:
    if subject.trainer is None:
        return None
    engine, trainer = (_vocabulary(config) for config in (subject.hf_config, subject.trainer.config))
    if engine is None or trainer is None or trainer <= engine:
        return None
    return f"{plural(trainer - engine, 'row')} more in the folder's head: vocab_size {engine} and {trainer}"


def _vocabulary(config: Mapping[str, Any]) -> int | None:
    text = config.get("text_config")
    size = config.get("vocab_size") or (text.get("vocab_size") if isinstance(text, Mapping) else None)
    return size if isinstance(size, int) else None


RULES = (
    Rule(
        "trainer-tokenizer-differs",
        BREAKS,
        "The same text has other ids in the trainer: one that is tokenized again is another sequence.",
        "the engine's tokenizer files in the trainer's folder; train on the ids that the engine returns",
        "https://github.com/huggingface/trl/issues/5224",
        _other_ids,
    ),
    Rule(
        "trainer-special-tokens-differ",
        RISK,
        "A prompt that either side begins, ends or pads with another token is another prompt, or ends elsewhere.",
        "the same special tokens on both sides; add_special_tokens=False where a chat template has added them",
        "https://github.com/huggingface/trl/issues/3853",
        _special,
    ),
    Rule(
        "trainer-chat-template-differs",
        RISK,
        "A conversation that the trainer renders again is another prompt than the one that the engine answered.",
        "the engine's chat template in the trainer's folder; train on the ids that the engine returns",
        "https://github.com/volcengine/verl/issues/3960",
        _template,
    ),
    Rule(
        "trainer-vocabulary-padded",
        RISK,
        "It may be the same model, padded: rows that stand for no token take mass from the others if not masked.",
        "mask the logits from the engine's vocab_size on in the trainer",
        "https://github.com/volcengine/verl/pull/7038",
        _padded,
    ),
    Rule(
        "trainer-tokenizer-unknown",
        NOTE,
        "Whether both sides make the same ids of a text can only be told where both tokenizers are.",
        "run lint where the engine's model folder is",
        "vLLM 0.18.1, transformers_utils/tokenizer.py, get_tokenizer",
        _unknown,
    ),
)
