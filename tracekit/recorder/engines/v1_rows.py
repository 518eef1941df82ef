"""Events of the V1 hooks → rows of the trace's tables. Runs on the recorder's background thread."""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from tracekit.recorder.engines.snapshot import dumps, jsonable
from tracekit.tables import ACCEPTED, DISCARDED, NEW, PARTIAL, PREEMPTED, PREFILL, RESUMED, TABLES

Row = dict[str, Any]

# async scheduling returns a token one or two steps after its request was aborted
REMEMBER_FINISHED = 4096


class Dispatch(NamedTuple):
    """What is known when a step is scheduled; the weight version must be stamped here, not at the output."""

    engine_step: int
    time_ns: int
    weight_version: int
    num_waiting: int
    kv_usage: float


class _Request:
    """What the encoder keeps of a live request."""

    __slots__ = ("next_position", "num_prompt", "number")

    def __init__(self, number: int, num_prompt: int) -> None:
        self.number = number
        self.num_prompt = num_prompt
        self.next_position = num_prompt


class V1Rows:
    """Keeps the numbering of requests and positions, and collects rows until they are taken."""

    def __init__(self) -> None:
        self._live: dict[str, _Request] = {}
        self._finished: OrderedDict[str, _Request] = OrderedDict()
        self._orphans: dict[str, int] = {}
        self._external: dict[str, str] = {}
        self._num_requests = 0
        self._rows: dict[str, dict[str, list[Any]]] = {}

    def num_tokens(self) -> int:
        """Token rows collected since the last `take`."""
        tokens = self._rows.get("tokens")
        return len(tokens["token_id"]) if tokens else 0

    def count(self, event: tuple[Any, ...]) -> dict[str, int]:
        """Rows by table that an event stands for, where they cannot be encoded."""
        kind = event[0]
        if kind == "output":
            _, _, scheduled, raw, _, _ = event
            sampled = sum(len(ids) for ids in raw[0])
            return {"steps": 1, "scheduled": len(scheduled.num_scheduled_tokens), "tokens": sampled}
        return {kind: 1} if kind in TABLES else {}

    def take_orphans(self) -> dict[str, int]:
        """Rows by table whose request is not in the trace (its admission was lost), since the last call."""
        orphans, self._orphans = self._orphans, {}
        return orphans

    def take(self) -> dict[str, dict[str, Any]]:
        """Return the collected rows as columns and start anew; empty when there are none."""
        rows, self._rows = self._rows, {}
        return {table: {name: _column(TABLES[table][name], v) for name, v in c.items()} for table, c in rows.items()}

    def add(self, event: tuple[Any, ...]) -> None:
        """Encode one event: ("external", id, id), ("output", …), or (table name, row)."""
        kind = event[0]
        if kind == "output":
            self._add_output(*event[1:])
        elif kind == "requests":
            self._add_request(*event[1:])
        elif kind == "external":
            self._external[event[1]] = event[2]
        elif kind == "finished":
            for request_id in event[1]:
                self._finish(request_id, event[2], event[3], event[4])
        else:
            self._append(kind, event[1])

    def _find(self, request_id: str, table: str, num_rows: int) -> _Request | None:
        request = self._live.get(request_id) or self._finished.get(request_id)
        if request is None:
            self._orphans[table] = self._orphans.get(table, 0) + num_rows
        return request

    def _append(self, table: str, row: Row) -> None:
        columns = self._rows.get(table)
        if columns is None:
            columns = self._rows[table] = {name: [] for name in TABLES[table] if name != "engine"}
        for name, values in columns.items():
            values.append(row[name])

    def _add_request(self, time_ns: int, request: Any) -> None:
        request_id = request.request_id
        prompt = request.prompt_token_ids or []
        external = self._external.pop(request_id, None) or request_id.rsplit("-", 1)[0]
        # a child of an n>1 request is named "{index}_{parent}" (v1/engine/parallel_sampling.py)
        index, _, parent = request_id.partition("_")
        is_child = index.isdigit() and parent.startswith(external)
        params = request.sampling_params
        extra = dict(getattr(params, "extra_args", None) or {})
        headers = {k: v for k, v in (getattr(request, "trace_headers", None) or {}).items()}
        self._live[request_id] = _Request(self._num_requests, request.num_prompt_tokens)
        # private fields hold what the engine resolved: bad words as token ids, all stop token ids
        sampling = {name.lstrip("_"): value for name, value in (jsonable(params) or {}).items()}
        self._append(
            "requests",
            {
                "request": self._num_requests,
                "time_ns": time_ns,
                "request_id": request_id,
                "external_id": external,
                "parent_id": external if is_child else None,
                "index": int(index) if is_child else 0,
                "prompt_token_ids": list(prompt),
                "sampling_params": dumps(sampling),
                "lora": getattr(request.lora_request, "lora_name", None),
                "cache_salt": request.cache_salt,
                "labels": dumps({**headers, **extra}),
            },
        )
        self._num_requests += 1

    def _add_output(self, at: Dispatch, scheduled: Any, raw: tuple[Any, ...], outputs: Any, output_ns: int) -> None:
        raw_ids, index_of, logprobs = raw
        accepted: dict[str, list[int]] = {}
        finished: list[tuple[str, Any]] = []
        for output in (o for client in outputs.values() for o in client.outputs):
            accepted[output.request_id] = output.new_token_ids
            if output.finish_reason is not None:
                finished.append((output.request_id, output.finish_reason))
        self._add_step(at, scheduled, output_ns, raw_ids, index_of)
        for request_id in scheduled.num_scheduled_tokens:
            row = index_of.get(request_id)
            ids = raw_ids[row] if raw_ids and row is not None else []
            if ids:
                self._add_tokens(at, request_id, row, ids, len(accepted.get(request_id, ())), logprobs)
        for request_id, reason in finished:
            self._finish(request_id, str(reason), at.engine_step, output_ns)

    def _add_tokens(
        self, at: Dispatch, request_id: str, row: int, ids: list[int], num_accepted: int, logprobs: Any
    ) -> None:
        request = self._find(request_id, "tokens", len(ids))
        if request is None:
            return
        first = logprobs.cu_num_generated_tokens[row] if logprobs and logprobs.cu_num_generated_tokens else row
        for i, token_id in enumerate(ids):
            accepted = i < num_accepted
            self._append(
                "tokens",
                {
                    "request": request.number,
                    "position": request.next_position + (0 if accepted else i - num_accepted),
                    "token_id": token_id,
                    "rollout_logprob": logprobs.logprobs[first + i, 0] if logprobs else None,
                    "rank": logprobs.sampled_token_ranks[first + i] if logprobs else None,
                    "engine_step": at.engine_step,
                    "weight_version": at.weight_version,
                    "flags": ACCEPTED if accepted else DISCARDED,
                },
            )
            request.next_position += accepted

    def _add_step(self, at: Dispatch, scheduled: Any, output_ns: int, raw_ids: Any, index_of: dict[str, int]) -> None:
        self._append(
            "steps",
            {
                "engine_step": at.engine_step,
                "time_ns": at.time_ns,
                "output_ns": output_ns,
                "weight_version": at.weight_version,
                "num_requests": len(scheduled.num_scheduled_tokens),
                "num_scheduled_tokens": scheduled.total_num_scheduled_tokens,
                "num_waiting": at.num_waiting,
                "kv_usage": at.kv_usage,
            },
        )
        cached = scheduled.scheduled_cached_reqs
        computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        new = {r.req_id: r.num_computed_tokens for r in scheduled.scheduled_new_reqs}
        for request_id, num_tokens in scheduled.num_scheduled_tokens.items():
            request = self._find(request_id, "scheduled", 1)
            if request is None:
                continue
            num_computed = new[request_id] if request_id in new else computed[request_id]
            row = index_of.get(request_id)
            flags = NEW if request_id in new else 0
            flags |= RESUMED if request_id in cached.resumed_req_ids else 0
            flags |= PREFILL if num_computed < request.num_prompt else 0
            flags |= PARTIAL if not (raw_ids and row is not None and raw_ids[row]) else 0
            self._append_scheduled(at.engine_step, request.number, num_tokens, num_computed, flags)
        for request_id in scheduled.preempted_req_ids or ():
            request = self._find(request_id, "scheduled", 1)
            if request is not None:
                self._append_scheduled(at.engine_step, request.number, 0, 0, PREEMPTED)

    def _append_scheduled(self, engine_step: int, number: int, num_tokens: int, num_computed: int, flags: int) -> None:
        row = {"engine_step": engine_step, "request": number, "num_tokens": num_tokens}
        self._append("scheduled", {**row, "num_computed": num_computed, "flags": flags})

    def _finish(self, request_id: str, reason: str, engine_step: int, time_ns: int) -> None:
        request = self._live.pop(request_id, None)
        if request is None:
            return
        self._finished[request_id] = request
        if len(self._finished) > REMEMBER_FINISHED:
            self._finished.popitem(last=False)
        row = {"request": request.number, "engine_step": engine_step, "time_ns": time_ns, "reason": reason}
        self._append("finishes", {**row, "num_output_tokens": request.next_position - request.num_prompt})


def _column(kind: str, values: Iterable[Any]) -> Any:
    """A column in the numpy form the wire takes: arrays for numbers, lists for text and lists, masked for nulls."""
    base = kind.rstrip("?")
    values = list(values)
    if base == "str" or base.startswith("list<"):
        return values
    if kind.endswith("?"):
        missing = [v is None for v in values]
        if any(missing):
            return np.ma.MaskedArray(np.array([0 if v is None else v for v in values], dtype=base), mask=missing)
    return np.array(values, dtype=base)
