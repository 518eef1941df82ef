"""A JSON-safe copy of the engine's resolved configuration, without secrets."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
from collections.abc import Mapping
from typing import Any

MAX_DEPTH = 6
MAX_TEXT = 400
SECRET = ("api_key", "hf_token", "password", "secret", "ssl_")


def jsonable(value: Any, depth: int = 0) -> Any:
    """Return `value` as JSON types: dataclasses and structs by field, enums by name, the rest by a short repr."""
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return value[:MAX_TEXT]
    if isinstance(value, bytes | bytearray | memoryview):
        return f"{len(value)} bytes"
    if getattr(value, "ndim", 0) and hasattr(value, "dtype"):
        return f"{value.dtype} {list(value.shape)}"  # a tensor's repr reads it from its device
    if depth >= MAX_DEPTH:
        return repr(value)[:MAX_TEXT]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names: Any = [field.name for field in dataclasses.fields(value)]
    else:
        # msgspec structs (sampling parameters) name their fields so; some configurations of 0.8.5 are plain objects
        names = getattr(type(value), "__struct_fields__", None)
        if names is None and type(value).__module__.startswith("vllm.config") and not isinstance(value, type):
            names = [name for name in vars(value) if not name.startswith("_")]
    if names is not None:
        return _fields({name: getattr(value, name, None) for name in names}, depth)
    if isinstance(value, Mapping):
        return _fields(value, depth)
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(item, depth + 1) for item in value]
    to_dict = getattr(value, "to_dict", None)  # transformers configurations
    if callable(to_dict):
        return _fields(to_dict(), depth)
    return repr(value)[:MAX_TEXT]


def _fields(fields: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    return {str(k): jsonable(v, depth + 1) for k, v in fields.items() if not str(k).lower().startswith(SECRET)}


def vllm_environment() -> dict[str, str]:
    """The `VLLM_*` variables of this process, without keys and tokens."""
    return {k: v for k, v in os.environ.items() if k.startswith("VLLM_") and not k.endswith(("KEY", "TOKEN"))}


def vllm_version() -> str:
    """The installed vLLM's version, for messages and the trace only."""
    try:
        from vllm.version import __version__

        return str(__version__)
    except Exception:
        return "unknown"


def dumps(value: Any) -> str:
    """`jsonable(value)` as compact JSON text; NaN and infinities stay as Python's json writes them."""
    return json.dumps(jsonable(value), separators=(",", ":"))
