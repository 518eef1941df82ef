"""Events of the V1 hooks → rows of the trace's tables. Runs on the recorder's background thread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tracekit.recorder.guard import say_once
from tracekit.recorder.vllm.blocks import Hit
from tracekit.recorder.vllm.events import Admitted, Dispatch, Named, Step
from tracekit.recorder.vllm.rows import LiveRequest, Rows
from tracekit.recorder.vllm.snapshot import jsonable
from tracekit.recorder.vllm.v1.blocks import V1Blocks
from tracekit.recorder.vllm.v1.prompts import prompt_arrays
from tracekit.tables import ACCEPTED, DISCARDED, NEW, PARTIAL, PREEMPTED, PREFILL, RESUMED


class V1Request(LiveRequest):
    """A live request of a V1 engine."""

    __slots__ = ("block_hashes",)

    block_hashes: Sequence[bytes]  # the engine's own list, which grows


class V1Rows(Rows[V1Request]):
    """The encoder of one V1 engine.

    Args:
        num_blocks: KV blocks of the engine, the null block included.
        logprobs: whose are recorded, one of `settings.LOGPROBS`.
        logprobs_mode: what the engine reports.
        blocks: follows the engine's KV blocks; without it prefix hits are not recorded.
        sample: share of requests that are recorded.
        first_step: that is recorded; None: it is not known.
    """

    def __init__(
        self,
        num_blocks: int,
        logprobs: str = "client",
        logprobs_mode: str = "raw_logprobs",
        blocks: V1Blocks | None = None,
        sample: float = 1.0,
        first_step: int | None = None,
    ) -> None:
        super().__init__(sample)
        self._next_step = first_step
        self._adrift: set[str] = set()  # requests that may have sampled in steps that are missing
        self._all_asked = logprobs != "client"
        self._reported, self._other = "", ""  # columns for what the engine reports, and what we computed beside it
        if logprobs == "both":
            raw, processed = "raw_logprob", "processed_logprob"
            modes = {"raw_logprobs": (raw, processed), "processed_logprobs": (processed, raw)}
            self._reported, self._other = modes.get(logprobs_mode, ("", ""))
            if not self._reported:
                say_once(f"raw and processed logprobs are not recorded from an engine that reports {logprobs_mode}")
        self._num_usable_blocks = max(num_blocks - 1, 1)
        self._blocks = blocks or V1Blocks([])
        self._external: dict[str, str] = {}

    def _count_step(self, event: Step) -> dict[str, int]:
        scheduled = event.scheduled
        ours = {r for r in scheduled.num_scheduled_tokens if self.is_sampled(r)}
        num_tokens = sum(len(event.token_ids[row]) for r, row in event.row_of.items() if r in ours and event.token_ids)
        rows = {"steps": 1, "scheduled": len(ours), "tokens": num_tokens}
        more = {"topk": self._count_topk(event), "cache": self._blocks.count(scheduled, ours)}
        for request_id, prompt in prompt_arrays(event.prompts):
            if not self.is_sampled(request_id):
                continue
            known = self._live.get(request_id) or self._finished.get(request_id)
            for table, count in prompt.num_rows(known).items():
                more[table] = more.get(table, 0) + count
        return {**rows, **{table: count for table, count in more.items() if count}}

    def _add_name(self, event: Named) -> None:
        self._external[event.request_id] = event.external_id

    def _add_request(self, event: Admitted) -> None:
        request = event.request
        if getattr(request, "resumable", False):
            # a streaming-input session rewrites its own prompt and takes back tokens: its positions are not these
            say_once("streaming-input sessions are not recorded, their tokens are counted as lost")
            return
        request_id = request.request_id
        external = self._external.pop(request_id, request_id.rsplit("-", 1)[0])
        # a child of an n>1 request is named "{index}_{parent}" (v1/engine/parallel_sampling.py)
        index, _, parent = request_id.partition("_")
        is_child = index.isdecimal() and parent.startswith(external)
        params = request.sampling_params
        live = V1Request(self._num_requests, request.num_prompt_tokens, self._all_asked or _asks(params), params)
        live.block_hashes = getattr(request, "block_hashes", ())
        self._admit(
            event,
            live,
            external_id=external,
            index=int(index) if is_child else None,
            prompt=request.prompt_token_ids or (),
            num_mm_features=len(getattr(request, "mm_features", None) or ()),
            # private fields hold what the engine resolved: bad words as token ids, all stop token ids
            sampling={name.lstrip("_"): value for name, value in (jsonable(params) or {}).items()},
            cache_salt=request.cache_salt,
        )
        self._blocks.begin(request_id)

    def _family(self, request_id: str) -> str:
        return family_of(request_id)

    def _add_step(self, event: Step) -> None:
        at, scheduled, ids, row_of = event.at, event.scheduled, event.token_ids, event.row_of
        assert at is not None  # else the recording counts it as lost
        if self._next_step is not None and at.engine_step > self._next_step:
            self._adrift.update(self._live, self._finished)
        self._next_step = -1  # until all of this is done
        made = [output for client in event.outputs.values() for output in client.outputs]
        rows = {r: row_of[r] for r in scheduled.num_scheduled_tokens if r in row_of} if ids else {}
        rows = {r: row for r, row in rows.items() if ids[row]}  # a chunk of a prompt samples nothing
        if self._adrift:
            self._realign(scheduled, rows)
        hits = self._blocks.step(at.engine_step, at.weight_version, scheduled)
        usage = 1 - at.num_free_blocks / self._num_usable_blocks
        num_requests, num_tokens = len(scheduled.num_scheduled_tokens), scheduled.total_num_scheduled_tokens
        self._append_step(at, event.output_ns, num_requests, num_tokens, usage)
        self._add_hits(at.engine_step, hits)
        self._add_scheduled(at.engine_step, scheduled, rows)
        self._add_tokens(at, event, rows, {o.request_id: len(o.new_token_ids) for o in made})
        self._add_prompts(at.engine_step, event)
        for output in made:
            if output.finish_reason is not None:
                self._finish(output.request_id, str(output.finish_reason), at.engine_step, event.output_ns)
        self._next_step = at.engine_step + 1

    def _realign(self, scheduled: Any, sampled: Iterable[str]) -> None:
        """Let requests of which steps are missing go on at the position that the scheduler has them at."""
        computed = _computed(scheduled)
        for request_id in self._adrift.intersection(sampled):
            self._adrift.discard(request_id)
            request = self._known(request_id)
            if request is None:
                continue
            if self._blocks.late_rejections and request.was_scheduled:
                # the scheduler counts drafts that may be rejected: its next tokens are counted as lost
                self._live.pop(request_id, None)
                self._finished.pop(request_id, None)
                continue
            num_drafts = len(scheduled.scheduled_spec_decode_tokens.get(request_id, ()))
            request.next_position = computed[request_id] + scheduled.num_scheduled_tokens[request_id] - num_drafts

    # The two below run for every sequence of every step and hold the interpreter while they do: columns are made by
    # comprehensions, not row by row.

    def _add_tokens(self, at: Dispatch, event: Step, rows: dict[str, int], num_accepted: dict[str, int]) -> None:
        raw_ids, logprobs, other = event.token_ids, event.logprobs, event.column
        found = [(self._find(r, "tokens", len(raw_ids[row])), row, num_accepted.get(r, 0)) for r, row in rows.items()]
        picked = [(q, row, raw_ids[row], n) for q, row, n in found if q is not None]
        columns = self._columns("tokens")
        columns["request"] += [q.number for q, _, ids, _ in picked for _ in ids]
        positions = [q.next_position + i for q, _, ids, _ in picked for i in range(len(ids))]
        columns["position"] += positions
        columns["token_id"] += [token_id for _, _, ids, _ in picked for token_id in ids]
        flags = [ACCEPTED if i < n else DISCARDED for _, _, ids, n in picked for i in range(len(ids))]
        columns["flags"] += flags
        columns["engine_step"] += [at.engine_step] * len(flags)
        columns["weight_version"] += [at.weight_version] * len(flags)
        both: dict[str, list[float | None]] = {}
        if logprobs is None:
            columns["rollout_logprob"] += [None] * len(flags)
            columns["rank"] += [None] * len(flags)
        else:
            first = logprobs.cu_num_generated_tokens or range(len(raw_ids))
            index = [first[row] + i for _, row, ids, _ in picked for i in range(len(ids))]
            chosen, ranks = logprobs.logprobs[index, 0].tolist(), logprobs.sampled_token_ranks[index].tolist()
            if not all(q.asked for q, *_ in picked):
                asked = [q.asked for q, _, ids, _ in picked for _ in ids]
                chosen = [value if a else None for value, a in zip(chosen, asked, strict=True)]
                ranks = [value if a else None for value, a in zip(ranks, asked, strict=True)]
            both[self._reported] = chosen
            if other is not None:
                both[self._other] = other[index].tolist()
            columns["rollout_logprob"] += chosen
            columns["rank"] += ranks
            self._add_topk([q for q, _, ids, _ in picked for _ in ids], positions, index, logprobs)
            if len(picked) < len(found):
                for r, row in rows.items():
                    if (known := self._known(r)) is not None and known.shed and known.num_topk:
                        self._miss(known, {"topk": len(raw_ids[row]) * known.num_topk})
        for name in ("raw_logprob", "processed_logprob"):
            columns[name] += both.get(name) or [None] * len(flags)
        for request, _, _, n in picked:
            request.next_position += n

    def _hash(self, request: V1Request, hit: Hit) -> int | None:
        if not self._blocks.groups[hit.kv_group].hashed or hit.block >= len(request.block_hashes):
            return None
        return int.from_bytes(request.block_hashes[hit.block][:8], "big")

    def _add_topk(self, requests: list[V1Request], positions: list[int], index: list[int], logprobs: Any) -> None:
        """Append the first columns after the sampled token's, as many as each row's request asked for.

        Args:
            requests: of each token [N].
            positions: of each token [N].
            index: its row in `logprobs` [N].
        """
        asked = np.array([q.num_topk for q in requests])
        if not asked.any():
            return
        columns = self._columns("topk")
        index_array, position_array = np.array(index), np.array(positions)
        numbers = np.array([q.number for q in requests])
        for k in np.unique(asked[asked > 0]).tolist():
            mine = asked == k
            at = index_array[mine]
            columns["request"] += np.repeat(numbers[mine], k).tolist()
            columns["position"] += np.repeat(position_array[mine], k).tolist()
            columns["rank"] += list(range(1, k + 1)) * len(at)
            columns["token_id"] += logprobs.logprob_token_ids[at, 1 : k + 1].ravel().tolist()
            columns["logprob"] += logprobs.logprobs[at, 1 : k + 1].ravel().tolist()

    def _add_prompts(self, engine_step: int, event: Step) -> None:
        for request_id, prompt in prompt_arrays(event.prompts):
            request = self._known(request_id)
            if request is None or request.shed:
                self._miss(request, prompt.num_rows(request) if self.is_sampled(request_id) else {})
                continue
            prompt.append_to(self._columns, request, engine_step)

    def _count_topk(self, event: Step) -> int:
        """Rows of `topk` in a step; a request that is not encoded yet counts like the one that asked for most."""
        raw_ids, logprobs = event.token_ids, event.logprobs
        if logprobs is None or not raw_ids:
            return 0
        width = logprobs.logprobs.shape[1] - 1
        total = 0
        for request_id in event.scheduled.num_scheduled_tokens if width else ():
            row = event.row_of.get(request_id) if self.is_sampled(request_id) else None
            request = self._live.get(request_id) or self._finished.get(request_id)
            if row is not None:
                total += len(raw_ids[row]) * (width if request is None else request.num_topk)
        return total

    def _add_scheduled(self, engine_step: int, scheduled: Any, sampled: dict[str, int]) -> None:
        cached = scheduled.scheduled_cached_reqs
        new = {r.req_id for r in scheduled.scheduled_new_reqs}
        computed = _computed(scheduled)
        found = [(self._find(r, "scheduled", 1), r, n) for r, n in scheduled.num_scheduled_tokens.items()]
        picked = [(q, r, n, computed[r]) for q, r, n in found if q is not None]
        preempted = [self._find(r, "scheduled", 1) for r in scheduled.preempted_req_ids or ()]
        gone = [q for q in preempted if q is not None]
        columns = self._columns("scheduled")
        columns["request"] += [q.number for q, *_ in picked] + [q.number for q in gone]
        columns["num_tokens"] += [n for _, _, n, _ in picked] + [0] * len(gone)
        columns["num_computed"] += [c for *_, c in picked] + [0] * len(gone)
        drafts = scheduled.scheduled_spec_decode_tokens
        columns["num_draft"] += [len(drafts.get(r, ())) for _, r, *_ in picked] + [0] * len(gone)
        # the second model runner takes a resumed request for a new one
        again = {r for q, r, *_ in picked if r in new and q.was_scheduled} | cached.resumed_req_ids
        columns["flags"] += [
            (RESUMED if r in again else NEW if r in new else 0)
            | (PREFILL if c < q.num_prompt else 0)
            | (0 if r in sampled else PARTIAL)
            for q, r, _, c in picked
        ] + [PREEMPTED] * len(gone)
        columns["engine_step"] += [engine_step] * (len(picked) + len(gone))
        for q, *_ in picked:
            q.was_scheduled = True

    def _finish(
        self, request_id: str, reason: str, engine_step: int, time_ns: int, num_output_tokens: int | None = None
    ) -> None:
        self._blocks.end(request_id, engine_step)
        super()._finish(request_id, reason, engine_step, time_ns, num_output_tokens)

    def _retire(self, request_id: str) -> V1Request | None:
        request = super()._retire(request_id)
        if request is not None:
            request.block_hashes = ()
        return request


def _computed(scheduled: Any) -> dict[str, int]:
    """Tokens with KV before a step, of each request in it."""
    cached = scheduled.scheduled_cached_reqs
    new = {r.req_id: r.num_computed_tokens for r in scheduled.scheduled_new_reqs}
    return {**dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True)), **new}


def _asks(params: Any) -> bool:
    """Whether the client of a request gets logprobs of its tokens; 0.32 has more ways to ask, and a property."""
    return getattr(params, "num_logprobs", getattr(params, "logprobs", None)) is not None


def family_of(request_id: str) -> str:
    """What the ids of one n>1 request have in common (vllm/v1/engine/parallel_sampling.py `get_child_info`)."""
    index, _, parent = request_id.partition("_")
    return parent if index.isdecimal() else request_id
