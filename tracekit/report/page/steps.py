"""The engines' steps as a page shows them: cut into parts, each with its batch, cache hits and how far it is off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tracekit.join import lookup, pair_key, pick
from tracekit.report.page.figures import F8
from tracekit.report.page.tokens import Columns

MAX_PARTS = 240  # of an engine; more steps than that are shown together
_SUMS = ("num_prefill", "num_decode", "num_chunks", "num_preempted")
_LARGEST = ("num_requests", "num_waiting", "kv_usage")

Timeline = Mapping[str, Columns]
"""Columns by table, as `tracekit.replay.timeline` says."""


def lanes(timeline: Timeline, tokens: Columns, d: F8) -> list[dict[str, Any]]:
    """Return of each engine, by name of the lane, one value per part; none where the timeline is empty.

    Sums are of all steps of a part, `num_requests`, `num_waiting` and `kv_usage` the largest; `d` is mean |d| in nats,
    None without a scored token; `hits` and `stale` are blocks found in the prefix cache, all and those that older
    weights than the step's computed.

    Args:
        timeline: see there.
        tokens: columns of the replay.
        d: [N] nats, of the tokens.
    """
    if not timeline or not timeline["steps"]["engine"].size:
        return []
    steps = timeline["steps"]
    return [_of_engine(int(engine), timeline, tokens, d) for engine in np.unique(steps["engine"])]


def _of_engine(engine: int, timeline: Timeline, tokens: Columns, d: F8) -> dict[str, Any]:
    steps = _only(timeline["steps"], engine)
    number = steps["engine_step"].astype(np.int64)
    width = -(-number.size // MAX_PARTS)
    starts = np.arange(0, number.size, width)
    ends = np.r_[starts[1:], number.size] - 1
    lane: dict[str, Any] = {"engine": engine, "first": number[starts].tolist(), "last": number[ends].tolist()}
    lane |= {name: np.add.reduceat(steps[name].astype(np.int64), starts).tolist() for name in _SUMS}
    lane |= {name: np.maximum.reduceat(steps[name], starts).round(4).tolist() for name in _LARGEST}
    lane["weight_version"] = steps["weight_version"][ends].tolist()
    lane["begin_ms"] = ((steps["time_ns"][starts] - steps["time_ns"][0]) / 1e6).round(1).tolist()
    part = starts.searchsorted(np.arange(number.size), side="right") - 1
    mine = (tokens["engine"] == engine) & np.isfinite(d)
    at = lookup(number, tokens["engine_step"][mine].astype(np.int64))
    known = at >= 0
    size = np.bincount(part[at[known]], weights=np.abs(d[mine][known]), minlength=starts.size)
    count = np.bincount(part[at[known]], minlength=starts.size)
    lane["d"] = [round(float(s / n), 8) if n else None for s, n in zip(size, count, strict=True)]
    hits = _only(timeline["hits"], engine)
    at = lookup(number, hits["engine_step"].astype(np.int64))
    known = at >= 0
    at, blocks = at[known], hits["num_blocks"][known]
    old = hits["min_weight_version"][known] < steps["weight_version"][at].astype(np.int64)
    old &= hits["min_weight_version"][known] >= 0
    for name, weight in (("hits", blocks), ("stale", blocks * old)):
        lane[name] = np.bincount(part[at], weights=weight, minlength=starts.size).astype(np.int64).tolist()
    return lane


def hits_by_version(timeline: Timeline) -> Iterator[tuple[int, str, int, int, int]]:
    """Yield (engine, versions that computed it, version that ran, blocks, tokens) of what the prefix cache gave."""
    hits, steps = timeline["hits"], timeline["steps"]
    key, wanted = (pair_key(table["engine"], table["engine_step"]) for table in (steps, hits))
    ran = pick(steps["weight_version"].astype(np.int64), lookup(key, wanted), -1)
    rows = np.stack([hits["engine"], hits["min_weight_version"], hits["max_weight_version"], ran], axis=1)
    kinds, of = np.unique(rows, axis=0, return_inverse=True)
    sums = [np.bincount(of.ravel(), weights=hits[name], minlength=len(kinds)) for name in ("num_blocks", "num_tokens")]
    for (engine, oldest, newest, version), blocks, tokens in zip(kinds.tolist(), *sums, strict=True):
        found = "not known" if oldest < 0 else str(oldest) if oldest == newest else f"{oldest} to {newest}"
        yield engine, found, version, int(blocks), int(tokens)


def _only(columns: Columns, engine: int) -> dict[str, Any]:
    mine = columns["engine"] == engine
    return {name: values[mine] for name, values in columns.items()}
