"""Adapters: those that others were loaded in place of, and requests that name none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracekit.audit.lint.resets import emptied
from tracekit.audit.lint.types import Subject
from tracekit.audit.rows import EngineRows
from tracekit.trace.values import json_object

PATH_IN_KEY_SINCE = (0, 32)  # 0.18.1 hashes the name, 0.32.0 name and path; nobody looked at those between


@dataclass(frozen=True)
class _Use:
    """A load of an adapter, or a request that names it."""

    key: tuple[Any, ...]  # what cached blocks are tied to
    place: str  # where its weights come from
    name: str
    first: int  # engine step
    last: int  # -1 where nothing ran with it


def reused_names(subject: Subject) -> str | None:
    """Say which adapters' blocks can be hit by others that were loaded under what ties blocks to them."""
    rows = subject.rows
    if rows is None or not subject["enable_prefix_caching"]:
        return None
    resets = emptied(rows)
    uses: dict[tuple[Any, ...], list[_Use]] = {}
    for use in sorted((*_loads(subject, rows), *_requests(subject, rows)), key=lambda use: use.first):
        uses.setdefault(use.key, []).append(use)
    shown = []
    for own in uses.values():
        places = list(dict.fromkeys(use.place for use in own))
        if any(_meet(own[:at], own[at:], resets) for at in range(1, len(own)) if own[at].place != own[at - 1].place):
            shown.append(f"{own[0].name!r} was {', then '.join(places)}")
    return "; ".join(shown) or None


def on_some_requests(subject: Subject) -> str | None:
    """Say how many requests name an adapter where others name none."""
    if subject.rows is None:
        return None
    loras = subject.rows.requests.column("lora").to_pylist()
    named = [lora for lora in loras if lora is not None]
    if not named or len(named) == len(loras):
        return None
    names = ", ".join(map(repr, sorted(set(named))))
    return f"{len(named)} of {len(loras)} requests name an adapter ({names}), the others do not"


def _meet(before: list[_Use], after: list[_Use], resets: Any) -> bool:
    """Whether what ran before can be hit by what runs after."""
    old, new = max(use.last for use in before), min((use.first for use in after if use.last >= 0), default=-1)
    return old >= 0 and new >= 0 and not ((resets > old) & (resets <= new)).any()


def _loads(subject: Subject, rows: EngineRows) -> Iterator[_Use]:
    for row in rows.control:
        if row["name"] == "add_lora":
            arguments = json_object(row["arguments"], "the arguments of a call")
            for given in [*(arguments.get("args") or []), *(arguments.get("kwargs") or {}).values()]:
                if isinstance(given, dict) and given.get("lora_name"):
                    told = (given["lora_name"], given.get("lora_int_id"), given.get("lora_path"))
                    yield _use(subject, rows, *told, row["engine_step"], -1)


def _requests(subject: Subject, rows: EngineRows) -> Iterator[_Use]:
    """What ran; a request whose adapter has no path in the record says nothing of where it came from."""
    scheduled = rows["scheduled"]
    count = len(rows.requests)
    first, last = np.full(count, np.iinfo(np.int64).max), np.full(count, -1)
    row = rows.row_of(scheduled["request"])
    known = row >= 0
    np.minimum.at(first, row[known], scheduled["engine_step"][known])
    np.maximum.at(last, row[known], scheduled["engine_step"][known])
    told = rows.requests.select(["lora", "lora_id", "lora_path"]).to_pylist()
    for request, begin, end in zip(told, first.tolist(), last.tolist(), strict=True):
        if request["lora"] is not None and request["lora_path"] is not None and end >= 0:
            yield _use(subject, rows, request["lora"], request["lora_id"], request["lora_path"], begin, end)


def _use(subject: Subject, rows: EngineRows, name: str, number: Any, path: Any, first: int, last: int) -> _Use:
    if rows.about.get("kind") == "v0":
        key: tuple[Any, ...] = (number,)
    else:
        key = (name, path) if subject.version >= PATH_IN_KEY_SINCE else (name,)
    return _Use(key, f"{path} ({number})", name, first, last)
