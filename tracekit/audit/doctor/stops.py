"""Where V1's frontend ends a completion on a stop string; the engine computes on until it hears of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tracekit.audit.findings import Array
from tracekit.audit.rows import EngineRows

INVALID_PREFIX = "Invalid prefix encountered"  # text that is not monotonic: vLLM begins a new stream there


def counts(
    rows: EngineRows, prompt: Sequence[int], token_ids: Sequence[int], steps: Array, sampling: Mapping[str, Any]
) -> frozenset[int] | None:
    """Return how many tokens a client may have that a stop string ended.

    The client gets the token that completes the string, and none of a later step. Where one step accepts several
    tokens, 0.18 delivers all of them and 0.32 those up to the string.

    Args:
        rows: of the engine, which name its tokenizer.
        prompt: its token ids.
        token_ids: those that were decoded.
        steps: the engine step of each token, those that were not decoded as well.
        sampling: the recorded sampling parameters.

    Returns:
        The counts; none where no stop string stands in the text. None where the engine's tokenizer is not here.
    """
    tokenizer = _tokenizer(str(tokenizer_path(rows)), rows.setting("model_config", "tokenizer_mode"))
    if tokenizer is None:
        return None
    if not (sampling.get("skip_special_tokens", True) or sampling.get("spaces_between_special_tokens", True)):
        return None  # vLLM puts such a text together by itself
    stop = _completed_at(tokenizer, prompt, token_ids, sampling)
    if stop is None:
        return frozenset()
    return frozenset({stop, int(np.flatnonzero(steps == steps[stop - 1])[-1]) + 1})


def tokenizer_path(rows: EngineRows) -> Path:
    """Return where the engine loaded its tokenizer from."""
    folder = rows.setting("model_config", "tokenizer") or rows.about.get("model") or ""
    return Path(folder) / "tokenizer.json"


@lru_cache(maxsize=4)
def _tokenizer(path: str, mode: str | None) -> Any:
    if mode not in (None, "auto", "hf") or not Path(path).is_file():
        return None
    try:
        from tokenizers import Tokenizer

        return Tokenizer.from_file(path)
    except Exception:  # it is not installed, or raises a plain Exception for what it cannot read
        return None


def _completed_at(
    tokenizer: Any, prompt: Sequence[int], token_ids: Sequence[int], sampling: Mapping[str, Any]
) -> int | None:
    from tokenizers.decoders import DecodeStream

    wanted = sampling["stop"]
    strings = [wanted] if isinstance(wanted, str) else list(wanted)
    skip = bool(sampling.get("skip_special_tokens", True))
    stream, text = DecodeStream(ids=list(prompt), skip_special_tokens=skip), ""
    for count, token in enumerate(token_ids, 1):
        try:
            new = stream.step(tokenizer, token) or ""
        except Exception as error:
            if not str(error).startswith(INVALID_PREFIX):
                raise
            stream = DecodeStream(skip_special_tokens=skip)
            new = stream.step(tokenizer, token) or ""
        text += new
        # a string that is whole within min_tokens is let through for ever
        if new and count > int(sampling.get("min_tokens") or 0):
            if any(text.find(string, 1 - len(new) - len(string)) != -1 for string in strings):
                return count
    return None
