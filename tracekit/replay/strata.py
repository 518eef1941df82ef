"""Under which circumstances each scored token was sampled: its batch, its prefix-cache hit, its preemptions."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import numpy as np

from tracekit import tables
from tracekit.diagnose.data import I8, Mask, Strata
from tracekit.join import lookup, pair_key, pick
from tracekit.replay.columns import int_columns
from tracekit.replay.rollouts import Rollout

if TYPE_CHECKING:
    import pyarrow as pa

    from tracekit.trace.reader import Trace

_STEPS = 1 << 32


def strata_of(trace: Trace, rollouts: Seq[Rollout]) -> Strata:
    """Return what the trace tells of every token of the rollouts; -1 where it does not."""
    lengths = [r.num_tokens for r in rollouts]
    engine = np.repeat([r.sequence.engine for r in rollouts], lengths)
    request = np.repeat([r.sequence.request for r in rollouts], lengths)
    step = np.concatenate([r.engine_step for r in rollouts])
    whose = np.unique(pair_key(engine, request))
    steps = int_columns(trace.table("steps"), ("engine", "engine_step", "num_requests"))
    row, scheduled = _of(whose, trace.table("scheduled"), ("num_computed", "num_tokens", "num_draft", "flags"))
    token = np.searchsorted(whose, pair_key(engine, request)) * _STEPS + step
    flags = scheduled["flags"]
    out, ran = (flags & tables.PREEMPTED) != 0, (flags & tables.PREEMPTED) == 0
    began = ran & ((flags & (tables.NEW | tables.RESUMED)) != 0)
    admitted, at = np.sort(row[began]), np.argsort(row[began])
    last = np.searchsorted(admitted, token, side="right") - 1
    known = (last >= 0) & (admitted[last.clip(0)] // _STEPS == token // _STEPS) if admitted.size else last >= 0
    admission = np.where(known, admitted[last.clip(0)], -1) if admitted.size else np.full(token.size, -1)
    cached = scheduled["num_computed"][began][at]
    oldest, newest = _found(whose, trace.table("cache"), admission)
    thrown_out = np.sort(row[out])
    computing = np.sort(row[ran & ((flags & tables.PREFILL) != 0)])
    return Strata(
        num_cached=np.where(known, cached[last.clip(0)], -1) if cached.size else np.full(token.size, -1),
        oldest_found=oldest,
        newest_found=newest,
        batch_size=_looked_up(
            pair_key(steps["engine"], steps["engine_step"]), steps["num_requests"], pair_key(engine, step)
        ),
        prefill=_looked_up(row[ran], ((flags[ran] & tables.PREFILL) != 0).astype(np.int64), token),
        num_preempted=np.searchsorted(thrown_out, token) - np.searchsorted(thrown_out, token // _STEPS * _STEPS),
        num_drafts=_looked_up(row[ran], scheduled["num_draft"][ran], token),
        num_chunks=np.searchsorted(computing, token, side="right")
        - np.searchsorted(computing, token // _STEPS * _STEPS),
        adapters=_adapters(trace, pair_key(engine, step)),
    )


def _found(whose: I8, table: pa.Table, admission: I8) -> tuple[I8, I8]:
    """[N] each, oldest and newest weight version of the blocks that were found when a token's request began."""
    row, rows = _of(whose, table, ("kv_group", "min_weight_version", "max_weight_version"))
    mine: Mask = rows["kv_group"] == 0
    keys, at = np.unique(row[mine], return_inverse=True)
    oldest, newest = np.full(keys.size, np.iinfo(np.int64).max), np.full(keys.size, -1)
    np.minimum.at(oldest, at, rows["min_weight_version"][mine])  # one that is not known, -1, makes all unknown
    np.maximum.at(newest, at, rows["max_weight_version"][mine])
    return _looked_up(keys, oldest, admission), _looked_up(keys, np.where(oldest < 0, -1, newest), admission)


def _adapters(trace: Trace, wanted: I8) -> I8:
    """[N] a number for the set of adapters in each step's batch, 0 for none."""
    own = int_columns(trace.table("requests"), ("engine", "request", "lora_id"))
    every = int_columns(trace.table("scheduled"), ("engine", "request", "engine_step"))
    adapter = _looked_up(
        pair_key(own["engine"], own["request"]), own["lora_id"], pair_key(every["engine"], every["request"])
    )
    named = adapter > 0
    if not named.any():
        return np.zeros_like(wanted)
    steps = pair_key(every["engine"], every["engine_step"])[named]
    pairs = np.unique(np.column_stack([steps, adapter[named]]), axis=0)
    which, at = np.unique(pairs[:, 0], return_inverse=True)
    sets = np.zeros(which.size, dtype=np.int64)
    np.add.at(sets, at, (pairs[:, 1] * 0x9E3779B1) & 0xFFFFFFFF)  # sums of such multiples tell sets apart
    return np.maximum(_looked_up(which, sets, wanted), 0)


def _looked_up(keys: I8, values: I8, wanted: I8) -> I8:
    """[N] the value of each wanted key; -1 where there is none."""
    order = np.argsort(keys)
    return pick(values[order], lookup(keys[order], wanted), -1)


def _of(whose: I8, table: pa.Table, names: tuple[str, ...]) -> tuple[I8, dict[str, I8]]:
    """The rows of these requests: [N] one number for each (request, step), in their order, and the named columns."""
    columns = int_columns(table, ("engine", "request", "engine_step", *names))
    pair = pair_key(columns["engine"], columns["request"])
    own = np.isin(pair, whose)
    key = np.searchsorted(whose, pair[own]) * _STEPS + columns["engine_step"][own]
    return key, {name: columns[name][own] for name in names}
