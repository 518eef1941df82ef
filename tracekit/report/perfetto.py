"""The engines' timeline in the JSON that Perfetto and chrome://tracing open: Chrome's Trace Event Format.

An engine is a process; its threads are its steps, its weights and calls, and one for each request. The keys are those
of Google's "Trace Event Format": `ph` X is a slice, C a counter, i an instant, M a name.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tracekit.diagnose.result import Result
from tracekit.report.page.markup import visible

Columns = Mapping[str, npt.NDArray[Any]]
Event = dict[str, Any]

_STEPS, _CALLS, _REQUESTS = 1, 2, 10  # threads; a request's is its number behind the last
_KINDS = ("waiting", "prefill", "decode", "preempted")  # of spans, as `tracekit.replay.timeline` numbers them


def to_perfetto(result: Result, tokens: Columns, timeline: Mapping[str, Columns], *, packed: bool = False) -> bytes:
    """Return the file.

    Args:
        result: of the replay.
        tokens: columns of its tokens.
        timeline: columns by table, as `tracekit.replay.timeline` says.
        packed: whether with gzip.
    """
    steps, spans = timeline["steps"], timeline["spans"]
    times = [table[name] for table in (steps, spans) for name in table if name in ("time_ns", "begin_ns")]
    begin = min((int(values.min()) for values in times if values.size), default=0)
    events = [
        *_names(result, timeline),
        *_steps(steps, tokens, begin),
        *_spans(spans, begin),
        *_instants(timeline, tokens, begin),
        *_calls(timeline["events"], begin),
    ]
    text = json.dumps({"traceEvents": events, "otherData": {"begin_wall_ns": str(begin)}}, separators=(",", ":"))
    return gzip.compress(text.encode(), 6, mtime=0) if packed else text.encode()


def _names(result: Result, timeline: Mapping[str, Columns]) -> Iterator[Event]:
    for engine in np.unique(timeline["steps"]["engine"]).tolist():
        yield _named("process_name", engine, 0, f"engine {engine}")
        yield _named("thread_name", engine, _STEPS, "steps")
        yield _named("thread_name", engine, _CALLS, "weights and calls")
    ids = {(rollout.engine, rollout.request): rollout.request_id for rollout in result.verdict.rollouts}
    spans = timeline["spans"]
    for engine, request in sorted(set(zip(spans["engine"].tolist(), spans["request"].tolist(), strict=True))):
        own = visible(ids.get((engine, request), ""))
        yield _named("thread_name", engine, _REQUESTS + request, f"request {request} {own}".rstrip())


def _steps(steps: Columns, tokens: Columns, begin: int) -> Iterator[Event]:
    off = _mean_off(tokens)
    ends = _until_next(steps["engine"], steps["time_ns"], steps["output_ns"])
    rows = {name: values.tolist() for name, values in steps.items()}
    for i, (engine, step) in enumerate(zip(rows["engine"], rows["engine_step"], strict=True)):
        args = {name: values[i] for name, values in rows.items() if not name.endswith("_ns")}
        args["output_us"] = (rows["output_ns"][i] - rows["time_ns"][i]) / 1e3
        begun, took = (rows["time_ns"][i] - begin) / 1e3, int(ends[i]) - rows["time_ns"][i]
        yield _slice(f"step {step}", engine, _STEPS, begun, took, args)
        counters = {
            "tokens": {"prefill": args["num_prefill"], "decode": args["num_decode"]},
            "requests": {"running": args["num_requests"], "waiting": args["num_waiting"]},
            "KV in use": {"share": args["kv_usage"]},
            "weight": {"version": args["weight_version"]},
        }
        if (engine, step) in off:
            counters["mean |d|"] = {"nats": off[engine, step]}
        for name, values in counters.items():
            yield {"ph": "C", "name": name, "pid": engine + 1, "tid": 0, "ts": begun, "args": values}


def _spans(spans: Columns, begin: int) -> Iterator[Event]:
    owner = spans["engine"].astype(np.int64) << 32 | spans["request"].astype(np.int64)
    ends = _until_next(owner, spans["begin_ns"], spans["end_ns"])
    rows = {name: values.tolist() for name, values in spans.items()}
    names = ("first_step", "last_step", "num_tokens", "num_computed")
    for i, kind in enumerate(rows["kind"]):
        args = {name: rows[name][i] for name in names}
        thread, begun = _REQUESTS + rows["request"][i], rows["begin_ns"][i]
        yield _slice(_KINDS[kind], rows["engine"][i], thread, (begun - begin) / 1e3, int(ends[i]) - begun, args)


def _instants(timeline: Mapping[str, Columns], tokens: Columns, begin: int) -> Iterator[Event]:
    """Cache hits, when their request is scheduled, and tokens beyond noise, when their step's output came."""
    steps, hits = timeline["steps"], timeline["hits"]
    keys = list(zip(steps["engine"].tolist(), steps["engine_step"].tolist(), strict=True))
    dispatched, done = (dict(zip(keys, steps[name].tolist(), strict=True)) for name in ("time_ns", "output_ns"))
    rows = {name: values.tolist() for name, values in hits.items()}
    for i, key in enumerate(zip(rows["engine"], rows["engine_step"], strict=True)):
        if key in dispatched:
            args = {name: values[i] for name, values in rows.items()}
            yield _instant("cache hit", key[0], _REQUESTS + rows["request"][i], (dispatched[key] - begin) / 1e3, args)
    beyond = np.flatnonzero(tokens["beyond_noise"])
    told = ("engine", "engine_step", "request", "position", "token_id", "d")
    for row in zip(*(tokens[name][beyond].tolist() for name in told), strict=True):
        token = dict(zip(told, row, strict=True))
        if row[:2] in done and np.isfinite(token["d"]):
            at = (done[row[:2]] - begin) / 1e3
            yield _instant("beyond noise", row[0], _REQUESTS + token["request"], at, token)


def _calls(events: Columns, begin: int) -> Iterator[Event]:
    rows = {name: values.tolist() for name, values in events.items()}
    ends = _until_next(events["engine"], events["begin_ns"], events["end_ns"])
    for i, text in enumerate(rows["text"]):
        args = {"what": rows["kind"][i], "engine_step": rows["engine_step"][i]}
        if rows["weight_version"][i] >= 0:
            args["weight_version"] = rows["weight_version"][i]
        begun = rows["begin_ns"][i]
        yield _slice(visible(text), rows["engine"][i], _CALLS, (begun - begin) / 1e3, int(ends[i]) - begun, args)


def _mean_off(tokens: Columns) -> dict[tuple[int, int], float]:
    """Mean |d| of each (engine, step), over tokens with a finite one."""
    use = np.isfinite(tokens["d"])
    keys = tokens["engine"][use].astype(np.int64) << 32 | tokens["engine_step"][use].astype(np.int64)
    steps, at, counts = np.unique(keys, return_inverse=True, return_counts=True)
    means = np.bincount(at, np.abs(tokens["d"][use]), minlength=steps.size) / counts
    return {(k >> 32, k & 0xFFFFFFFF): m for k, m in zip(steps.tolist(), means.tolist(), strict=True)}


def _until_next(owner: npt.NDArray[Any], begins: npt.NDArray[Any], ends: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[N] the ends, but none after the next begin on the same thread: a thread's slices must not overlap.

    An engine that schedules ahead dispatches a step before the output of the last is there.
    """
    ends = ends.copy()
    same = owner[1:] == owner[:-1]
    ends[:-1] = np.where(same, np.minimum(ends[:-1], begins[1:]), ends[:-1])
    clipped: npt.NDArray[Any] = np.maximum(ends, begins)
    return clipped


def _named(what: str, engine: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": what, "pid": engine + 1, "tid": thread, "args": {"name": name}}


def _slice(name: str, engine: int, thread: int, begun_us: float, took_ns: int, args: Mapping[str, Any]) -> Event:
    times = {"ts": begun_us, "dur": took_ns / 1e3}
    return {"ph": "X", "name": name, "pid": engine + 1, "tid": thread, **times, "args": args}


def _instant(name: str, engine: int, thread: int, at_us: float, args: Mapping[str, Any]) -> Event:
    return {"ph": "i", "s": "t", "name": name, "pid": engine + 1, "tid": thread, "ts": at_us, "args": args}
