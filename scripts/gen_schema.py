"""Write docs/result.schema.json from the classes of `tracekit.diagnose.result`; a test compares.

Names and types come from the fields, descriptions from the docstrings' `Attributes:`.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tracekit.diagnose.result import SCHEMA_VERSION, Result

TARGET = Path(__file__).resolve().parent.parent / "docs/result.schema.json"
BASIC = {
    str: {"type": "string"},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    float: {"type": ["number", "null"]},  # null where it is not finite
}


def render() -> str:
    """Return the text of the schema (JSON Schema 2020-12)."""
    defs: dict[str, Any] = {}
    root = _object(Result, defs)
    root["properties"]["schema_version"]["const"] = SCHEMA_VERSION
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The result of tracekit replay",
        "description": "What `tracekit replay --json` prints and replay.arrow stores under the metadata key "
        "tracekit.result. Logprobs are in nats; d = replay − rollout; a number that is not finite is null.",
    }
    return json.dumps({**head, **root, "$defs": defs}, indent=2, ensure_ascii=False) + "\n"


def _object(kind: Any, defs: dict[str, Any]) -> dict[str, Any]:
    hints, texts = get_type_hints(kind), _texts(kind)
    names = [field.name for field in fields(kind)]
    properties = {name: {**_schema(hints[name], defs), **_described(texts.get(name))} for name in names}
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _schema(kind: Any, defs: dict[str, Any]) -> dict[str, Any]:
    if is_dataclass(kind):
        name = kind.__name__  # type: ignore[union-attr]
        if name not in defs:
            defs[name] = {}  # keeps its place before those that it needs
            defs[name] = {"description": inspect.getdoc(kind).splitlines()[0], **_object(kind, defs)}  # type: ignore[union-attr]
        return {"$ref": f"#/$defs/{name}"}
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin is list:
        return {"type": "array", "items": _schema(inner[0], defs)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _schema(inner[1], defs)}
    if NoneType in inner:
        return {"anyOf": [*(_schema(option, defs) for option in inner if option is not NoneType), {"type": "null"}]}
    return dict(BASIC[kind])


def _texts(kind: Any) -> dict[str, str]:
    """Descriptions of the fields, from the docstring."""
    _, _, section = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    found = re.findall(r"^    (\w+): (.*(?:\n(?:        .*)?)*)", section, re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _described(text: str | None) -> dict[str, str]:
    return {"description": text} if text else {}


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
