"""What the engines did while they sampled, short enough to be kept beside a verdict: steps, requests, cache, events.

Every time is wall-clock nanoseconds, so that engines on several machines share one axis.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracekit import tables
from tracekit.join import lookup, pair_key, pick
from tracekit.replay.columns import int_columns
from tracekit.trace.clock import wall_offsets

if TYPE_CHECKING:
    from tracekit.trace.reader import Trace

I8 = npt.NDArray[np.int64]

_PREFIX = b"tracekit.timeline."
_STEP_COLUMNS = ("engine", "engine_step", "weight_version", "num_requests", "num_waiting", "kv_usage")
_SCHEDULED = ("engine", "request", "engine_step", "num_computed", "num_tokens", "flags")
_HITS = ("engine", "engine_step", "request", "min_weight_version", "max_weight_version")
_MAX_ANSWER = 200  # characters of a call's arguments
WAITING, PREFILL, DECODE, PREEMPTED = range(4)  # spans.kind


def timeline_of(trace: Trace) -> dict[str, pa.Table]:
    """Return four tables.

    - `steps`: a row is an engine step; `num_prefill` and `num_decode` are tokens, `num_chunks` prompts that it computes
      a part of, `num_preempted` requests that were thrown out.
    - `spans`: a row is what happened to a request for a while: it waited, one chunk of it was prefilled, it was decoded
      from `first_step` to `last_step`, or it was out after a preemption. `num_computed` is of its beginning.
    - `hits`: a row is what a request found in the prefix cache: blocks and tokens, and the oldest and newest weight
      version that computed them, -1 where not known.
    - `events`: a row is a weight change, a label, or a call that steers the engine.
    """
    offset = wall_offsets(trace.engines())
    steps, scheduled = trace.table("steps"), int_columns(trace.table("scheduled"), _SCHEDULED)
    return {
        "steps": _steps(steps, scheduled, offset),
        "spans": _spans(
            steps, scheduled, int_columns(trace.table("requests"), ("engine", "request", "time_ns")), offset
        ),
        "hits": _hits(int_columns(trace.table("cache"), (*_HITS, "kv_group", "num_tokens"))),
        "events": _events(trace, offset),
    }


def to_metadata(timeline: Mapping[str, pa.Table]) -> dict[bytes, bytes]:
    """Return the tables as metadata of an Arrow schema, which must be text."""
    return {_PREFIX + name.encode(): _packed(table) for name, table in timeline.items()}


def from_metadata(metadata: Mapping[bytes, bytes]) -> dict[str, pa.Table]:
    """Return what `to_metadata` was given."""
    return {
        key.removeprefix(_PREFIX).decode(): pa.ipc.open_stream(base64.b64decode(value)).read_all()
        for key, value in metadata.items()
        if key.startswith(_PREFIX)
    }


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    return base64.b64encode(sink.getvalue())


def _steps(steps: pa.Table, scheduled: Mapping[str, I8], offset: Mapping[int, int]) -> pa.Table:
    columns: dict[str, Any] = {name: steps.column(name) for name in _STEP_COLUMNS}
    shift = _shift(steps.column("engine").to_numpy(), offset)
    columns |= {name: steps.column(name).to_numpy() + shift for name in ("time_ns", "output_ns")}
    flags, size = scheduled["flags"], steps.num_rows
    step = lookup(
        pair_key(*(steps.column(name).to_numpy() for name in ("engine", "engine_step"))),
        pair_key(scheduled["engine"], scheduled["engine_step"]),
    )
    known = step >= 0
    prefill = (flags & tables.PREFILL) != 0
    for name, weight in {
        "num_prefill": scheduled["num_tokens"] * prefill,
        "num_decode": scheduled["num_tokens"] * ~prefill,
        "num_chunks": (flags & tables.PARTIAL) != 0,
        "num_preempted": (flags & tables.PREEMPTED) != 0,
    }.items():
        columns[name] = np.bincount(step[known], weights=weight[known], minlength=size).astype(np.uint32)[:size]
    return pa.table(columns)


def _spans(
    steps: pa.Table, scheduled: Mapping[str, I8], requests: Mapping[str, I8], offset: Mapping[int, int]
) -> pa.Table:
    at = int_columns(steps, ("engine", "engine_step", "time_ns", "output_ns"))
    order = np.lexsort((scheduled["engine_step"], scheduled["request"], scheduled["engine"]))
    rows = {name: values[order] for name, values in scheduled.items()}
    step = lookup(pair_key(at["engine"], at["engine_step"]), pair_key(rows["engine"], rows["engine_step"]))
    keep = step >= 0  # a step that was lost has no time
    rows, step = {name: values[keep] for name, values in rows.items()}, step[keep]
    flags = rows["flags"]
    kind = np.select([(flags & tables.PREEMPTED) != 0, (flags & tables.PREFILL) != 0], [PREEMPTED, PREFILL], DECODE)
    owner = pair_key(rows["engine"], rows["request"])
    same = np.diff(owner) == 0
    # a run of decoding steps is one span, every other row is its own
    starts = np.flatnonzero(np.r_[True, ~(same & (kind[1:] == kind[:-1]) & (kind[1:] == DECODE))][: owner.size])
    ends = np.r_[starts[1:], owner.size][: starts.size] - 1
    begin, end = at["time_ns"][step[starts]], at["output_ns"][step[ends]]
    follows = np.r_[owner[starts][1:] == owner[starts][:-1], False][: starts.size]
    end = np.where((kind[starts] == PREEMPTED) & follows, np.r_[begin[1:], 0][: starts.size], end)
    spans = {
        "engine": rows["engine"][starts],
        "request": rows["request"][starts],
        "kind": kind[starts],
        "begin_ns": begin,
        "end_ns": end,
        "first_step": rows["engine_step"][starts],
        "last_step": rows["engine_step"][ends],
        "num_tokens": np.add.reduceat(rows["num_tokens"], starts) if starts.size else starts,
        "num_computed": rows["num_computed"][starts],
    }
    first = np.flatnonzero(np.r_[True, ~follows[:-1]][: starts.size])
    admitted = lookup(pair_key(requests["engine"], requests["request"]), owner[starts][first])
    first, admitted = first[admitted >= 0], admitted[admitted >= 0]
    waited = {name: values[first] for name, values in spans.items()}
    waited |= {"kind": np.full(first.size, WAITING), "begin_ns": requests["time_ns"][admitted], "end_ns": begin[first]}
    waited["num_tokens"] = np.zeros(first.size, dtype=np.int64)
    both = {name: np.r_[waited[name], spans[name]] for name in spans}
    order = np.lexsort((both["begin_ns"], both["request"], both["engine"]))
    shift = _shift(both["engine"], offset)
    both |= {name: both[name] + shift for name in ("begin_ns", "end_ns")}
    return pa.table({name: values[order] for name, values in both.items()})


def _hits(cache: Mapping[str, I8]) -> pa.Table:
    mine = cache["kv_group"] == 0
    keys, at = np.unique(np.stack([cache[name][mine] for name in _HITS], axis=1), axis=0, return_inverse=True)
    columns = dict(zip(_HITS, keys.T, strict=True)) if keys.size else dict.fromkeys(_HITS, np.zeros(0, dtype=np.int64))
    at = at.reshape(-1)
    columns["num_blocks"] = np.bincount(at, minlength=len(keys))
    columns["num_tokens"] = np.bincount(at, weights=cache["num_tokens"][mine], minlength=len(keys)).astype(np.int64)
    return pa.table(columns)


def _events(trace: Trace, offset: Mapping[int, int]) -> pa.Table:
    rows = []
    for row in trace.table("weights").to_pylist():
        what = row["label"] if row["label"] is not None else row["method"]
        kind = "label" if row["label"] is not None else "adapter" if row["lora"] is not None else "weights"
        rows.append(
            (row["engine"], row["engine_step"], row["begin_ns"], row["end_ns"], kind, row["weight_version"], what)
        )
    for row in trace.table("control").to_pylist():
        text = f"{row['name']} {row['arguments']}"[:_MAX_ANSWER]
        rows.append((row["engine"], row["engine_step"], row["time_ns"], row["time_ns"], "control", -1, text))
    rows.sort(key=lambda row: row[:3])
    names = ("engine", "engine_step", "begin_ns", "end_ns", "kind", "weight_version", "text")
    kinds = (pa.uint32(), pa.uint32(), pa.int64(), pa.int64(), pa.string(), pa.int64(), pa.string())
    table = pa.table([pa.array([r[i] for r in rows], kind) for i, kind in enumerate(kinds)], names=list(names))
    shift = _shift(table.column("engine").to_numpy(), offset)
    for name in ("begin_ns", "end_ns"):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, name, pa.array(table.column(name).to_numpy() + shift))
    return table


def _shift(engine: I8, offset: Mapping[int, int]) -> I8:
    """[N] nanoseconds from an engine's monotonic clock to the wall's."""
    known = np.array(sorted(offset), dtype=np.int64)
    found: I8 = pick(np.array([offset[number] for number in sorted(offset)], dtype=np.int64), lookup(known, engine), 0)
    return found
