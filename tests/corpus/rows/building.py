"""What rows have in common: the two uses, and shorthands."""

from __future__ import annotations

from typing import Any

from corpus.case import REPORT, TUNE, Ask, Case

ENGINE_OF = {
    "v1-fp32": "v1",
    "v1-bf16": "v1b",
    "latest-fp32": "latest",
    "latest-bf16": "latestb",
    "v1-long": "long",
    "latest-long": "latestlong",
    "v0-fp32": "v0",
    "v1-gemma": "gemma",
    "v1-tight": "tight",
    "v1-lora": "lora",
    "latest-spec": "spec",
    "v1-tiny": "tiny",
}

WARM = {"temperature": 0.7}
NUCLEUS = {"temperature": 0.8, "top_p": 0.9}


def row(name: str, kind: str, *, group: str = "v1-fp32", use: str = REPORT, **fields: Any) -> Case:
    """A case, named `<use>-<engine>-<name>`."""
    sampling, ask = fields.pop("sampling", None), fields.pop("ask", None)
    if sampling is not None or ask is not None:
        fields["steps"] = (Ask(sampling=sampling or {}, **(ask or {})),)
    return Case(name=f"{use}-{ENGINE_OF[group]}-{name}", kind=kind, group=group, use=use, **fields)


def tune(name: str, kind: str, **fields: Any) -> Case:
    return row(name, kind, use=TUNE, **fields)


def some(cases: list[Case], ends: str) -> list[Case]:
    """Those whose names, without use and engine, are among these words."""
    return [case for case in cases if case.name.split("-", 2)[2] in ends.split()]
