"""Rows of the trace's tables, collected as columns: what the encoders of all engine generations share."""

from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import numpy as np

from tracekit.recorder.guard import say_once
from tracekit.recorder.vllm.blocks import Hit
from tracekit.recorder.vllm.fingerprint import Tensors
from tracekit.tables import TABLES

Row = dict[str, Any]

# tokens of a finished request can still come, one or two steps after an abort
REMEMBER_FINISHED = 4096


class LiveRequest:
    """What an encoder keeps of a request."""

    __slots__ = ("asked", "next_position", "num_prompt", "num_topk", "number", "was_scheduled")

    def __init__(self, number: int, num_prompt: int, asked: bool, num_topk: int = 0) -> None:
        self.number = number
        self.asked = asked  # for logprobs: for who did not, the engine reports others' leavings or infinities
        self.num_topk = num_topk  # alternatives asked for at each position
        self.num_prompt = num_prompt
        self.next_position = num_prompt
        self.was_scheduled = False


R = TypeVar("R", bound=LiveRequest)


class Rows(Generic[R]):
    """Numbers requests and collects rows until they are taken; used by the recorder's background thread only."""

    def __init__(self) -> None:
        self._live: dict[str, R] = {}
        self._finished: OrderedDict[str, R] = OrderedDict()
        self._orphans: dict[str, int] = {}
        self._num_requests = 0
        self._rows: dict[str, dict[str, list[Any]]] = {}

    def num_tokens(self) -> int:
        """Token rows collected since the last `take`."""
        tokens = self._rows.get("tokens")
        return len(tokens["token_id"]) if tokens else 0

    def take_orphans(self) -> dict[str, int]:
        """Rows by table whose request is not in the trace (its admission was lost), since the last call."""
        orphans, self._orphans = self._orphans, {}
        return orphans

    def take(self) -> dict[str, dict[str, Any]]:
        """Return the collected rows as columns and start anew; empty when there are none."""
        rows, self._rows = self._rows, {}
        return {table: {name: column(TABLES[table][name], v) for name, v in c.items()} for table, c in rows.items()}

    def _columns(self, table: str) -> dict[str, list[Any]]:
        columns = self._rows.get(table)
        if columns is None:
            columns = self._rows[table] = {name: [] for name in TABLES[table] if name != "engine"}
        return columns

    def _append(self, table: str, row: Row) -> None:
        for name, values in self._columns(table).items():
            # a nullable column may be left out
            values.append(row.get(name) if TABLES[table][name].endswith("?") else row[name])

    def _add_fingerprints(self, weight_version: int, tensors: Tensors) -> None:
        columns = self._columns("fingerprints")
        columns["weight_version"] += [weight_version] * len(tensors)
        columns["rank"] += [rank for rank, _ in tensors]
        columns["tensor"] += [name for _, name in tensors]
        columns["dtype"] += [dtype for dtype, _, _ in tensors.values()]
        columns["shape"] += [list(shape) for _, shape, _ in tensors.values()]
        columns["hash"] += [digest for _, _, digest in tensors.values()]

    def _find(self, request_id: str, table: str, num_rows: int) -> R | None:
        request = self._live.get(request_id) or self._finished.get(request_id)
        if request is None:
            self._orphans[table] = self._orphans.get(table, 0) + num_rows
        return request

    def _add_hits(self, engine_step: int, hits: list[Hit]) -> None:
        counts = Counter(hit.request_id for hit in hits)
        requests = {request_id: self._find(request_id, "cache", count) for request_id, count in counts.items()}
        picked = [(q, hit) for hit in hits if (q := requests[hit.request_id]) is not None]
        if not picked:
            return
        columns = self._columns("cache")
        columns["engine_step"] += [engine_step] * len(picked)
        columns["request"] += [q.number for q, _ in picked]
        for name in ("kv_group", "block", "block_id", "num_tokens"):
            columns[name] += [getattr(hit, name) for _, hit in picked]
        columns["hash"] += [self._hash(q, hit) for q, hit in picked]
        columns["min_weight_version"] += [hit.versions[0] if hit.versions else None for _, hit in picked]
        columns["max_weight_version"] += [hit.versions[1] if hit.versions else None for _, hit in picked]

    def _hash(self, request: R, hit: Hit) -> int | None:
        """The engine's own hash of a block; None where it has none, or none that is still at hand."""
        return None

    def _retire(self, request_id: str) -> R | None:
        """Move a live request to the finished ones; None where it is not live."""
        request = self._live.pop(request_id, None)
        if request is not None:
            self._finished[request_id] = request
            if len(self._finished) > REMEMBER_FINISHED:
                self._finished.popitem(last=False)
        return request


def column(kind: str, values: Iterable[Any]) -> Any:
    """A column in the numpy form the wire takes: arrays for numbers, lists for text and lists, masked for nulls.

    Args:
        kind: a column type of `tracekit.tables`.
    """
    base = kind.rstrip("?")
    values = list(values)
    if base == "str" or base.startswith("list<"):
        return values
    if kind.endswith("?"):
        missing = [v is None for v in values]
        if any(missing):
            return np.ma.MaskedArray(np.array([0 if v is None else v for v in values], dtype=base), mask=missing)
    return np.array(values, dtype=base)


def topk_of(params: Any) -> int:
    """How many alternatives the client asked for at each position, as far as they are recorded."""
    num_topk = getattr(params, "logprobs", None) or 0
    if num_topk < 0:
        say_once("logprobs of the whole vocabulary are not recorded, only the sampled token's")
        return 0
    # 0.32: these are the logprobs of tokens that the client names, not of the most likely ones
    return 0 if getattr(params, "logprob_token_ids", None) else num_topk


def lora_columns(request: Any) -> Row:
    """What a request's LoRARequest says, for the requests table."""
    return {
        "lora": getattr(request, "lora_name", None),
        "lora_id": getattr(request, "lora_int_id", None),
        "lora_path": getattr(request, "lora_path", None),
    }
