"""Block tables of a V1 engine's requests, rebuilt from its scheduler's outputs, and what their hits found.

A scheduler output holds the whole table of a request that is new or resumed, and the blocks that were added of one that
goes on (vllm/v1/core/sched/output.py, vllm/v1/worker/gpu_model_runner.py `_update_states`). Runs on the recorder's
background thread.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from math import gcd
from typing import Any

from tracekit.recorder.guard import say_once
from tracekit.recorder.vllm.blocks import Hit, Provenance, parts
from tracekit.recorder.vllm.v1.groups import KvGroup

NULL_BLOCK = 0  # stands for blocks that a sliding window has left behind
IN_FLIGHT = 16  # steps that may still come for a request that has ended


class _Table:
    """One request's blocks, by group."""

    __slots__ = ("blocks", "delivered", "num_drafts", "version")

    def __init__(self, blocks: Sequence[Sequence[int]], delivered: list[int]) -> None:
        self.blocks = [list(own) for own in blocks]
        self.delivered = delivered
        self.version = -1
        self.num_drafts = 0

    def extend(self, new: Sequence[Sequence[int]]) -> None:
        """Append blocks; some may be there: a worker in this process lengthens the lists that the table came in."""
        for group, (own, more) in enumerate(zip(self.blocks, new, strict=True)):
            if not more:
                continue
            at = self.delivered[group]
            while at < len(own) and own[at] != more[0]:
                at += 1
            own[at : at + len(more)] = more
            self.delivered[group] = at + len(more)


class V1Blocks:
    """Follows the physical blocks of one V1 engine.

    Where a step is missing all that was known is given up: a hit then has no versions rather than wrong ones.

    Args:
        groups: the engine's KV cache groups, in its order.
        late_rejections: whether a step is scheduled before it is known which drafts of the last one were accepted.
    """

    def __init__(self, groups: Sequence[KvGroup], late_rejections: bool = False) -> None:
        self.groups = groups
        self.late_rejections = late_rejections
        self._stride = gcd(*(group.block_size for group in groups)) or 1
        self._provenance = Provenance()
        self._tables: dict[str, _Table] = {}
        self._ended: dict[str, int] = {}
        self._next_step = 0

    def step(self, engine_step: int, version: int, scheduled: Any) -> list[Hit]:
        """Follow one step; return what requests that begin or resume in it found computed.

        Args:
            engine_step: one more than that of the call before, or steps are missing.
            version: of the weights, at dispatch.
            scheduled: vLLM's SchedulerOutput.
        """
        if not self.groups:
            return []
        if engine_step != self._next_step:
            self._give_up()
        self._next_step = -1  # until all of this is done
        self._drop(engine_step, scheduled)
        self._provenance.move(getattr(scheduled, "kv_cache_block_copies", None) or ())
        self._go_on(version, scheduled)
        drafts = scheduled.scheduled_spec_decode_tokens
        hits = [
            hit
            for request in self._admitted(scheduled)
            for hit in self._admit(version, *request, len(drafts.get(request[0], ())))
        ]
        self._next_step = engine_step + 1
        return hits

    def count(self, scheduled: Any, requests: Container[str]) -> int:
        """Rows that `step` would return of these requests."""
        if not self.groups:
            return 0
        found = [start for request_id, _, start, _ in self._admitted(scheduled) if request_id in requests]
        return sum(len(parts(start, group.block_size)) for start in found for group in self.groups)

    def begin(self, request_id: str) -> None:
        """Note that a request is admitted; its name may have been another's."""
        self._ended.pop(request_id, None)

    def end(self, request_id: str, engine_step: int) -> None:
        """Note that a request has ended; some of its steps may still come."""
        self._ended[request_id] = engine_step + IN_FLIGHT

    def _give_up(self) -> None:
        self._provenance.clear()
        self._tables.clear()
        self._ended.clear()

    def _drop(self, engine_step: int, scheduled: Any) -> None:
        for request_id in (*scheduled.finished_req_ids, *(scheduled.preempted_req_ids or ())):
            self._tables.pop(request_id, None)
        while self._ended:
            request_id, last = next(iter(self._ended.items()))
            if last > engine_step:
                break
            self._tables.pop(request_id, None)
            del self._ended[request_id]

    def _go_on(self, version: int, scheduled: Any) -> None:
        cached = scheduled.scheduled_cached_reqs
        num_tokens, drafts = scheduled.num_scheduled_tokens, scheduled.scheduled_spec_decode_tokens
        resumed, tables, stride = cached.resumed_req_ids, self._tables, self._stride
        for request_id, start, new in zip(
            cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True
        ):
            table = tables.get(request_id)
            if (
                new is None
                and num_tokens[request_id] == 1
                and start % stride
                and table is not None
                and table.version == version
                and not table.num_drafts
            ):
                continue  # one more token in a block that these weights have touched already
            if request_id in resumed:
                continue
            if table is None:
                self._provenance.forget(block for own in new or () for block in own)
                continue
            if new is not None:
                table.extend(new)
            self._write(table, start, num_tokens[request_id], version)
            table.num_drafts = len(drafts.get(request_id, ()))

    def _admitted(self, scheduled: Any) -> Iterator[tuple[str, int, int, Any]]:
        """(request, tokens scheduled, tokens computed, block table) of who begins or resumes, in scheduling order."""
        cached = scheduled.scheduled_cached_reqs
        found = {new.req_id: (new.num_computed_tokens, new.block_ids) for new in scheduled.scheduled_new_reqs}
        if cached.resumed_req_ids:
            rows = zip(cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True)
            found.update({name: (start, new) for name, start, new in rows if name in cached.resumed_req_ids})
        if found:
            # who is scheduled later may hit what is computed earlier in the same step
            for request_id, num_tokens in scheduled.num_scheduled_tokens.items():
                if request_id in found:
                    yield request_id, num_tokens, *found[request_id]

    def _admit(
        self, version: int, request_id: str, num_tokens: int, start: int, blocks: Any, num_drafts: int
    ) -> Iterator[Hit]:
        delivered = [-(-(start + num_tokens) // group.block_size) for group in self.groups]
        table = self._tables[request_id] = _Table(blocks, delivered)
        for number, (group, own) in enumerate(zip(self.groups, table.blocks, strict=True)):
            for i, (block_id, count) in enumerate(zip(own, parts(start, group.block_size), strict=False)):
                known = group.tracked and block_id != NULL_BLOCK
                yield Hit(request_id, number, i, block_id, count, self._provenance.get(block_id) if known else None)
        self._write(table, start, num_tokens, version)
        table.num_drafts = num_drafts

    def _write(self, table: _Table, start: int, num_tokens: int, version: int) -> None:
        table.version = version
        end = start + num_tokens
        # of the drafts of the step before, which count as computed, some may be computed anew
        first = start - table.num_drafts if self.late_rejections else start
        for group, own in zip(self.groups, table.blocks, strict=True):
            if group.tracked:
                try:
                    self._provenance.write(own, group.block_size, first, end, version, start)
                except IndexError as error:
                    say_once(f"prefix hits have no weight versions from here on: {error}", "block table")
                    self._give_up()
                    return
