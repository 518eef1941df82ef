"""Prefix-cache hits: a request that starts with computed tokens found them where an earlier request left them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np

from tracekit.audit.findings import MISLEADS, Broken, Check
from tracekit.audit.rows import EngineRows
from tracekit.plural import plural


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
    sources: dict[int, dict[Any, list[tuple[int, int]]]] = {
        int(length): _first_computed(rows, int(length), identity) for length in np.unique(hits["num_computed"])
    }
    alone = np.zeros(at.size, dtype=bool)
    for i, row in enumerate(at.tolist()):
        length, step = int(hits["num_computed"][i]), int(hits["engine_step"][i])
        ids = prompts[row].values.to_numpy()[:length] if row >= 0 else np.zeros(0)
        if len(ids) < length:
            continue
        found = sources[length].get((identity[row], ids.astype("<u4").tobytes()), [])
        alone[i] = not any(first <= step and source != row for source, first in found)
    yield Broken(
        alone, hits, lambda i: f"{plural(hits['num_computed'][i], 'token')} cached that no earlier request computed"
    )


def _first_computed(rows: EngineRows, length: int, identity: list[Any]) -> dict[Any, list[tuple[int, int]]]:
    """Group requests by their first `length` tokens: (row of the request, step that computed the last of them)."""
    scheduled = rows.running
    start, end = scheduled["num_computed"], scheduled["num_computed"] + scheduled["num_tokens"]
    reaches = (start < length) & (end >= length)
    tokens = rows.accepted
    starts = np.searchsorted(tokens["request"], rows["requests"]["request"])
    prompts = rows.requests.column("prompt_token_ids")
    groups: dict[Any, list[tuple[int, int]]] = defaultdict(list)
    requests, first = np.unique(scheduled["request"][reaches], return_index=True)
    steps = scheduled["engine_step"][reaches][first]
    for row, step in zip(rows.row_of(requests).tolist(), steps.tolist(), strict=True):
        if row < 0:
            continue
        ids = prompts[row].values.to_numpy()
        if len(ids) < length:
            ids = np.concatenate([ids, tokens["token_id"][starts[row] : starts[row] + length - len(ids)]])
        groups[identity[row], ids[:length].astype("<u4").tobytes()].append((row, step))
    return groups


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
