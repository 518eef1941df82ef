"""Which engines of a trace have hashes in the place of token ids and texts, as the recorder was told to make them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from tracekit.errors import UsageError


def key_of(engine: Mapping[str, Any]) -> str | None:
    """Return the name of the key by which a row of `engines` is redacted; None where it is not."""
    try:
        return json.loads(engine["config"])["recorder"]["redacted"] or None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def redacted(engines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each engine whose prompts and tokens are redacted."""
    keys = {int(row["engine"]): key_of(row) for row in engines}
    return [f"engine {n}: prompts and tokens are hashes by the key {key}" for n, key in keys.items() if key]


def refuse_redacted(engines: Iterable[Mapping[str, Any]], what: str) -> None:
    """Make sure that ids of tokens are there.

    Args:
        engines: rows of that table.
        what: what needs them.

    Raises:
        UsageError: they are hashes.
    """
    if any(key_of(row) for row in engines):
        raise UsageError(f"{what} needs the ids of tokens, and this trace was redacted: it has keyed hashes of them")
