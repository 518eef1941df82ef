"""From events to rows of the trace's tables: what the encoders of all generations share."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Generic, NamedTuple, TypeVar

from tracekit.recorder.guard import say_once
from tracekit.recorder.vllm.blocks import Hit
from tracekit.recorder.vllm.columns import Columns, Row
from tracekit.recorder.vllm.events import (
    Admitted,
    Dispatch,
    Event,
    Fingerprints,
    Finished,
    Joined,
    Named,
    Preempted,
    Step,
    TableRow,
)
from tracekit.recorder.vllm.shares import is_within
from tracekit.recorder.vllm.snapshot import dumps

# tokens of a finished request can still come, one or two steps after an abort
REMEMBER_FINISHED = 4096


class LiveRequest:
    """What an encoder keeps of a request."""

    __slots__ = (
        "asked",
        "next_position",
        "num_prompt",
        "num_prompt_topk",
        "num_topk",
        "number",
        "shed",
        "was_scheduled",
    )

    def __init__(self, number: int, num_prompt: int, asked: bool, params: Any = None) -> None:
        self.number = number
        self.asked = asked  # for logprobs: for who did not, the engine reports others' leavings or infinities
        self.num_topk = topk_of(params)  # alternatives asked for at each position
        self.num_prompt_topk = prompt_topk_of(params)  # and at each of the prompt's
        self.num_prompt = num_prompt
        self.next_position = num_prompt
        self.was_scheduled = False
        self.shed = False  # its rows are counted and not kept


R = TypeVar("R", bound=LiveRequest)


class Handler(NamedTuple):
    """What is done with one kind of event."""

    encode: Callable[[Any], None]
    rows: Callable[[Any], dict[str, int]]  # how many by table it stands for, where it cannot be encoded


class Rows(Columns, Generic[R]):
    """Numbers requests and collects rows until they are taken; used by the recorder's background thread only.

    A generation of vLLM says how its requests and steps become rows; all else is the same for all.

    Args:
        sample: share of requests that are recorded; the others are not produced, and so not lost.

    Attributes:
        is_short: asked at each admission, whether the request is to be left out as a whole.
    """

    def __init__(self, sample: float = 1.0) -> None:
        super().__init__()
        self._sample = sample
        self._live: dict[str, R] = {}
        self._finished: OrderedDict[str, R] = OrderedDict()
        self.is_short: Callable[[], bool] = lambda: False
        self._unclear: set[str] = set()  # ids that two requests had at once
        self._orphans: dict[str, int] = {}
        self._shed: dict[str, int] = {}
        self._num_requests = 0
        self.handlers: dict[type, Handler] = {
            TableRow: Handler(self._add_row, lambda event: {event.table: 1}),
            Fingerprints: Handler(self._add_fingerprints, lambda event: {"fingerprints": len(event.tensors)}),
            Named: Handler(self._add_name, lambda _: {}),
            Admitted: Handler(self._add_admitted, lambda event: self._admissions(event, ("requests",))),
            Joined: Handler(self._add_joined, lambda event: self._admissions(event, ("requests", "joined"))),
            Step: Handler(self._add_step, self._count_step),
            Preempted: Handler(self._add_preempted, lambda _: {}),
            Finished: Handler(self._add_finished, lambda event: {"finishes": len(event.request_ids)}),
        }

    def add(self, event: Event) -> None:
        """Encode one event."""
        self.handlers[type(event)].encode(event)

    def count(self, event: Event) -> dict[str, int]:
        """Return the rows by table that an event stands for, where it cannot be encoded. Any thread may call it."""
        return self.handlers[type(event)].rows(event)

    def take_orphans(self) -> dict[str, int]:
        """Rows by table whose request is not in the trace (its admission was lost), since the last call."""
        orphans, self._orphans = self._orphans, {}
        return orphans

    def take_shed(self) -> dict[str, int]:
        """Rows by table of requests that were left out as a whole, since the last call."""
        shed, self._shed = self._shed, {}
        return shed

    def num_live(self) -> int:
        """Return the requests that have not come to their end."""
        return len(self._live)

    def num_unseen(self, has: Callable[[str], bool]) -> int:
        """Return the requests whose end was not seen: the engine does not have them any more.

        Args:
            has: whether the engine has a request.
        """
        return sum(not has(request_id) for request_id in self._live)

    # What a generation must say.

    def _add_request(self, event: Admitted) -> None:
        raise NotImplementedError

    def _add_step(self, event: Step) -> None:
        raise NotImplementedError

    def _count_step(self, event: Step) -> dict[str, int]:
        raise NotImplementedError

    def _family(self, request_id: str) -> str:
        """Return what the children of one n>1 request have in common: they are recorded together or not at all."""
        return request_id

    # What a generation may say.

    def _add_to(self, live: R, event: Joined) -> None:
        """Take what else a request that was under way has behind it."""

    def _add_name(self, event: Named) -> None:
        """Keep the caller's id of a request that will be admitted."""

    def _add_preempted(self, event: Preempted) -> None:
        """Note that a request gave way."""

    def _hash(self, request: R, hit: Hit) -> int | None:
        """Return the engine's own hash of a block; None where it has none, or none that is still at hand."""
        return None

    # What is the same for all.

    def is_sampled(self, request_id: str) -> bool:
        """Whether a request is recorded; any thread may ask, also of one whose admission was lost."""
        return is_within(self._family(request_id), self._sample)

    def _admissions(self, event: Admitted | Joined, tables: tuple[str, ...]) -> dict[str, int]:
        return {table: 1 for table in tables if self.is_sampled(event.request.request_id)}

    def _add_admitted(self, event: Admitted) -> None:
        request_id = event.request.request_id
        if not self.is_sampled(request_id):
            return
        if event.again:
            say_once("two requests under one id cannot be told apart: they are counted as lost from there on")
            self._unclear.add(request_id)
            for known in (self._live, self._finished):
                known.pop(request_id, None)
        if request_id in self._unclear:
            self._miss(None, {"requests": 1})
        else:
            self._add_request(event)

    def _add_joined(self, event: Joined) -> None:
        self._add_admitted(Admitted(event.time_ns, event.request))
        live = self._live.get(event.request.request_id)
        if live is None:
            return
        live.next_position += len(event.token_ids)
        live.was_scheduled = bool(event.num_computed or event.token_ids)
        self._add_to(live, event)
        if live.shed:
            return
        row = {"request": live.number, "engine_step": event.engine_step, "num_computed": event.num_computed}
        self._append("joined", {**row, "token_ids": event.token_ids})

    def _add_row(self, event: TableRow) -> None:
        self._append(event.table, event.row)

    def _add_fingerprints(self, event: Fingerprints) -> None:
        tensors = event.tensors
        columns = self._columns("fingerprints")
        columns["weight_version"] += [event.weight_version] * len(tensors)
        columns["rank"] += [rank for rank, _ in tensors]
        columns["tensor"] += [name for _, name in tensors]
        columns["dtype"] += [dtype for dtype, _, _ in tensors.values()]
        columns["shape"] += [list(shape) for _, shape, _ in tensors.values()]
        columns["hash"] += [digest for _, _, digest in tensors.values()]

    def _add_finished(self, event: Finished) -> None:
        for request_id in event.request_ids:
            self._finish(request_id, event.reason, event.engine_step, event.time_ns, event.num_output_tokens)

    def _admit(
        self,
        event: Admitted,
        live: R,
        *,
        external_id: str,
        index: int | None,
        prompt: Iterable[int],
        num_mm_features: int,
        sampling: Row,
        cache_salt: str | None = None,
    ) -> None:
        """Append the row of a request.

        Args:
            event: of its admission.
            live: what is kept of it; its number is the next.
            external_id: what the caller calls it, or the request that it is a child of.
            index: among the children of one n>1 request; None where it is not a child.
            prompt: token ids.
            num_mm_features: images and the like in its prompt.
            sampling: its sampling parameters as JSON types.
            cache_salt: what keeps its KV blocks apart from others'.
        """
        request = event.request
        extra = getattr(request.sampling_params, "extra_args", None)
        who = {"request": live.number, "time_ns": event.time_ns, "request_id": request.request_id}
        who |= {"external_id": external_id, "index": index or 0}
        self._live[request.request_id] = live
        self._num_requests += 1
        if self.is_short():
            live.shed = True
            self._append("shed", {**who, "reason": "the recorder's window was filling up"})
            self._miss(live, {"requests": 1})
            return
        self._append(
            "requests",
            {
                **who,
                "parent_id": None if index is None else external_id,
                "prompt_token_ids": list(prompt),
                "num_mm_features": num_mm_features,
                "sampling_params": dumps(sampling),
                **lora_columns(request.lora_request),
                "cache_salt": cache_salt,
                "labels": dumps({**(request.trace_headers or {}), **(extra or {})}),
            },
        )

    def _append_step(
        self, at: Dispatch, output_ns: int, num_requests: int, num_scheduled_tokens: int, kv_usage: float
    ) -> None:
        self._append(
            "steps",
            {
                "engine_step": at.engine_step,
                "time_ns": at.time_ns,
                "output_ns": output_ns,
                "weight_version": at.weight_version,
                "num_requests": num_requests,
                "num_scheduled_tokens": num_scheduled_tokens,
                "num_waiting": at.num_waiting,
                "kv_usage": kv_usage,
            },
        )

    def _finish(
        self, request_id: str, reason: str, engine_step: int, time_ns: int, num_output_tokens: int | None = None
    ) -> None:
        request = self._retire(request_id)
        if request is None:
            return
        if request.shed:
            self._miss(request, {"finishes": 1})
            return
        if num_output_tokens is None:
            num_output_tokens = request.next_position - request.num_prompt
        row = {"request": request.number, "engine_step": engine_step, "time_ns": time_ns, "reason": reason}
        self._append("finishes", {**row, "num_output_tokens": num_output_tokens})

    def _find(self, request_id: str, table: str, num_rows: int) -> R | None:
        request = self._known(request_id)
        if request is None or request.shed:
            self._miss(request, {table: num_rows} if self.is_sampled(request_id) else {})
            return None
        return request

    def _known(self, request_id: str) -> R | None:
        return self._live.get(request_id) or self._finished.get(request_id)

    def _miss(self, request: R | None, rows: dict[str, int]) -> None:
        """Count rows of a request that was shed, or that is not known."""
        missed = self._orphans if request is None else self._shed
        for table, count in rows.items():
            if count:
                missed[table] = missed.get(table, 0) + count

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

    def _retire(self, request_id: str) -> R | None:
        """Move a live request to the finished ones; None where it is not live."""
        request = self._live.pop(request_id, None)
        if request is not None:
            self._finished[request_id] = request
            if len(self._finished) > REMEMBER_FINISHED:
                self._finished.popitem(last=False)
        return request


def topk_of(params: Any) -> int:
    """How many alternatives the client asked for at each position, as far as they are recorded."""
    # 0.32: these are the logprobs of tokens that the client names, not of the most likely ones
    return 0 if getattr(params, "logprob_token_ids", None) else _alternatives(getattr(params, "logprobs", None))


def prompt_topk_of(params: Any) -> int:
    """How many alternatives the client asked for at each prompt position, as far as they are recorded."""
    if getattr(params, "prompt_logprob_token_ids", None) is not None:  # 0.32
        say_once("the logprobs of tokens that a client names at prompt positions are not recorded")
    return _alternatives(getattr(params, "prompt_logprobs", None))


def _alternatives(asked: int | None) -> int:
    if asked is not None and asked < 0:
        say_once("logprobs of the whole vocabulary are not recorded, only each token's own")
    return max(asked or 0, 0)


def lora_columns(request: Any) -> Row:
    """What a request's LoRARequest says, for the requests table."""
    return {
        "lora": getattr(request, "lora_name", None),
        "lora_id": getattr(request, "lora_int_id", None),
        "lora_path": getattr(request, "lora_path", None),
    }
