"""Prefix-cache hits: a request that starts with computed tokens found them where an earlier request left them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from tracekit.audit.findings import MISLEADS, Array, Broken, Check
from tracekit.audit.rows import EngineRows
from tracekit.plural import plural
from tracekit.trace.prefixes import prefix_digests

_SIDES: tuple[Literal["left"], Literal["right"]] = ("left", "right")
_Prefix = tuple[Any, int, bytes]  # adapter and salt, length, digest
_Sources = dict[_Prefix, list[tuple[int, int]]]


def _beyond_prompt(rows: EngineRows) -> Iterator[Broken]:
    hits = rows.first_hits
    prompt = rows.prompt_of(hits["request"])
    yield Broken(
        (prompt > 0) & (hits["num_computed"] >= prompt),
        hits,
        lambda i: f"{plural(hits['num_computed'][i], 'token')} cached of a prompt of {prompt[i]}",
    )


def _without_cache(rows: EngineRows) -> Iterator[Broken]:
    if rows.setting("cache_config", "enable_prefix_caching") is False and not rows.setting("kv_transfer_config"):
        found = rows.first_hits["num_computed"]
        yield Broken(
            found > 0, rows.first_hits, lambda i: f"{plural(found[i], 'token')} cached with prefix caching off"
        )


def _unexplained(rows: EngineRows) -> Iterator[Broken]:
    if rows.setting("kv_transfer_config") or rows.is_part:
        return  # blocks may come from elsewhere, or from requests that are not in the trace
    hits = rows.first_hits
    at = rows.row_of(hits["request"])
    prompts = rows.requests.column("prompt_token_ids")
    identity = list(
        zip(rows.requests.column("lora").to_pylist(), rows.requests.column("cache_salt").to_pylist(), strict=True)
    )
    sought: list[_Prefix | None] = []
    for row, length in zip(at.tolist(), hits["num_computed"].tolist(), strict=True):
        ids = prompts[row].values.to_numpy() if row >= 0 else np.zeros(0)
        sought += [(identity[row], *mark) for mark in prefix_digests(ids, [length])] or [None]
    earliest = _earliest(rows, {prefix: [] for prefix in sought if prefix}, identity)
    alone = np.zeros(at.size, dtype=bool)
    for i, (row, prefix) in enumerate(zip(at.tolist(), sought, strict=True)):
        if prefix is not None:
            step = int(hits["engine_step"][i])
            alone[i] = not any(first <= step and source != row for first, source in earliest[prefix])
    yield Broken(
        alone, hits, lambda i: f"{plural(hits['num_computed'][i], 'token')} cached that no earlier request computed"
    )


def _earliest(rows: EngineRows, found: _Sources, identity: list[Any]) -> _Sources:
    """Fill in for each prefix the two requests that computed all of it first: (step, row of the request)."""
    lengths = sorted({length for _, length, _ in found})
    order = np.argsort(rows.running["request"], kind="stable")  # by request, then by step
    running, tokens = rows.running["request"][order], rows.accepted
    requests, starts = np.unique(running, return_index=True)
    begin, stop = (np.searchsorted(tokens["request"], requests, side=side).tolist() for side in _SIDES)
    prompts = rows.requests.column("prompt_token_ids")
    for i, row in enumerate(rows.row_of(requests).tolist()):
        if row < 0:
            continue
        ids = np.concatenate([prompts[row].values.to_numpy(), tokens["token_id"][begin[i] : stop[i]]])
        marks = [mark for mark in prefix_digests(ids, lengths) if (identity[row], *mark) in found]
        own = order[starts[i] : starts[i + 1] if i + 1 < requests.size else None] if marks else order[:0]
        start = rows.running["num_computed"][own]
        reached = _rows_reaching(start, start + rows.running["num_tokens"][own], [length for length, _ in marks])
        for mark, at in zip(marks, reached, strict=True):
            if at is not None:
                first = found[(identity[row], *mark)]
                first.append((int(rows.running["engine_step"][own[at]]), row))
                first[:] = sorted(first)[:2]  # one of them is not the request that asks
    return found


def _rows_reaching(start: Array, end: Array, lengths: list[int]) -> Iterator[int | None]:
    """Yield for each length the first row that began below it and ended at or beyond it."""
    furthest = np.maximum.accumulate(end) if end.size else end
    lowest = np.minimum.accumulate(start[::-1])[::-1] if start.size else start  # from each row on
    for length, at in zip(lengths, np.searchsorted(furthest, lengths).tolist(), strict=True):
        if at == end.size or lowest[at] >= length:
            yield None
        elif start[at] < length:
            yield at
        else:  # what lay there was found, and computed anew later
            later = np.flatnonzero((start < length) & (end >= length))
            yield int(later[0]) if later.size else None


CHECKS = (
    Check(
        "hit-beyond-prompt",
        MISLEADS,
        "A hit leaves at least the prompt's last token to compute, else there is nothing to sample from.",
        "Do not trust causes that rest on prefix hits, and report the trace with the version of vLLM.",
        _beyond_prompt,
        frozenset({"requests"}),
    ),
    Check(
        "hit-without-cache",
        MISLEADS,
        "A hit needs a prefix cache, and the recorded configuration says that there is none.",
        "See whether another process shares the KV (a connector), and report the trace if none does.",
        _without_cache,
        frozenset({"requests"}),
    ),
    Check(
        "hit-unexplained",
        MISLEADS,
        "What a hit found was computed by an earlier request with the same tokens, else the KV is not of this prompt.",
        "Record again with enable_prefix_caching=False and compare; report the trace if the logprobs differ.",
        _unexplained,
        frozenset({"requests", "tokens", "scheduled"}),
    ),
)
