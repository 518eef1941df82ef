"""Prefix-cache hits: a request that starts with computed tokens found them where an earlier request left them."""

from collections import defaultdict
from typing import Any

import numpy as np

from tracekit.audit.findings import Columns, Finding, finding
from tracekit.audit.rows import EngineRows
from tracekit.tables import NEW, PREEMPTED

__all__ = ["explained", "possible"]


def possible(rows: EngineRows) -> list[Finding]:
    """A hit needs a cache, and leaves at least the prompt's last token to compute."""
    hits = _hits(rows)
    at = rows.row_of(hits["request"])
    prompt = np.where(at < 0, 0, rows.num_prompt[at] if rows.num_prompt.size else 0)
    found = finding(
        "hit-beyond-prompt",
        rows.engine,
        (prompt > 0) & (hits["num_computed"] >= prompt),
        hits,
        lambda i: f"{hits['num_computed'][i]} tokens cached of a prompt of {prompt[i]}",
    )
    if rows.setting("cache_config", "enable_prefix_caching") is False and not rows.setting("kv_transfer_config"):
        found += finding(
            "hit-without-cache",
            rows.engine,
            hits["num_computed"] > 0,
            hits,
            lambda i: f"{hits['num_computed'][i]} tokens cached with prefix caching off",
        )
    return found


def explained(rows: EngineRows) -> list[Finding]:
    """Some other request computed the same tokens before a hit, or earlier in the same step."""
    if rows.setting("kv_transfer_config"):
        return []  # blocks may come from elsewhere
    hits = _hits(rows)
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
    return finding(
        "hit-unexplained",
        rows.engine,
        alone,
        hits,
        lambda i: f"{hits['num_computed'][i]} tokens cached that no earlier request computed",
    )


def _hits(rows: EngineRows) -> Columns:
    scheduled = rows["scheduled"]
    hit = ((scheduled["flags"] & NEW) != 0) & (scheduled["num_computed"] > 0)
    return {name: values[hit] for name, values in scheduled.items()}


def _first_computed(rows: EngineRows, length: int, identity: list[Any]) -> dict[Any, list[tuple[int, int]]]:
    """Group requests by their first ``length`` tokens: (row of the request, step that computed the last of them)."""
    scheduled = rows["scheduled"]
    start, end = scheduled["num_computed"], scheduled["num_computed"] + scheduled["num_tokens"]
    reaches = (start < length) & (end >= length) & ((scheduled["flags"] & PREEMPTED) == 0)
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
