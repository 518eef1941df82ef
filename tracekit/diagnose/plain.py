"""Between dataclasses and JSON: objects with the fields' names, numbers that are not finite as null."""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np


def plain(value: Any) -> Any:
    """Return the value in JSON's types; arrays become lists, NaN and infinities None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def unplain(kind: Any, value: Any) -> Any:
    """Return what `plain` was given, but for infinities, which come back as NaN.

    Args:
        kind: its type: a dataclass, a list or dict of types, a union with None, or one of JSON's own.
        value: what `plain` returned; keys that the dataclass does not know are left out.

    Raises:
        KeyError: a field of a dataclass is missing.
    """
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{f.name: unplain(hints[f.name], value[f.name]) for f in fields(kind)})  # type: ignore[operator]
    if get_origin(kind) is list:
        return [unplain(get_args(kind)[0], item) for item in value]
    if get_origin(kind) is dict:
        return {key: unplain(get_args(kind)[1], item) for key, item in value.items()}
    if value is None:
        return math.nan if kind is float else None
    options = [option for option in get_args(kind) if isinstance(option, type) and option is not NoneType]
    return unplain(options[0], value) if len(options) == 1 else value


def words_of(kind: Any, path: Seq[str]) -> tuple[str, ...]:
    """Return the words that a field can hold, where its type names them all.

    Args:
        kind: the type of what holds the field, as for `unplain`.
        path: names of the fields that lead to it.

    Returns:
        None of them where any text will do, or there is no such field.
    """
    if path:
        for option in (kind, *get_args(kind)):
            if is_dataclass(option) and path[0] in (hints := get_type_hints(option)):
                return words_of(hints[path[0]], path[1:])
        return ()
    found = (option for option in (kind, *get_args(kind)) if get_origin(option) is Literal)
    return tuple(word for option in found for word in get_args(option))
