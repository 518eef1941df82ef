"""Which weights computed a V0 engine's KV blocks, and what its hits found. Runs on the recorder's background thread.

Each step's metadata holds the whole block table of a request (vllm/core/scheduler.py `schedule`); the scheduler's
outputs say what the worker moves before the forward (vllm/worker/worker.py `execute_worker`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tracekit.recorder.vllm.blocks import Hit, Provenance, parts
from tracekit.recorder.vllm.events import Moves


class Part(NamedTuple):
    """A request's share of a step."""

    request_id: str
    tables: dict[int, list[int]]  # by sequence; one, as a request has one
    first: int  # tokens that had KV before
    end: int
    begins: bool  # new, or resumed
    known: bool  # whether all its steps were seen


class V0Blocks:
    """Follows the physical blocks of one V0 engine.

    Where a step is missing all that was known is given up: a hit then has no versions rather than wrong ones.
    """

    def __init__(self, block_size: int, first_step: int = 0) -> None:
        self._block_size = block_size
        self._device = Provenance()
        self._host = Provenance()
        self._next_step = first_step
        self.epoch = 0  # counts the times that steps were missing

    def follow(self, engine_step: int) -> None:
        """Begin a step; it must be one more than that of the call before, or steps are missing."""
        if engine_step != self._next_step:
            self._device.clear()
            self._host.clear()
            self.epoch += 1
        self._next_step = -1  # until `step` is done

    def step(self, engine_step: int, version: int, moves: Iterable[Moves], shares: Sequence[Part]) -> list[Hit]:
        """Follow one step; return what requests that begin or resume in it found computed.

        Args:
            version: of the weights, at dispatch.
            moves: of this step and of those before it that ran nothing.
            shares: what each request computes.
        """
        for moved in moves:
            self._device.move(moved.swap_in, self._host)
            self._host.move(moved.swap_out, self._device)
            self._device.move(moved.copy)
        hits: list[Hit] = []
        for share in shares:
            table = next(iter(share.tables.values()), [])
            if share.begins:
                hits += self._found(share, table)
            if share.known and len(table) * self._block_size >= share.end:
                self._device.write(table, self._block_size, share.first, share.end, version)
            else:
                self._device.forget(table)
        self._next_step = engine_step + 1
        return hits

    def count(self, num_computed: int) -> int:
        """Rows of a hit."""
        return len(parts(num_computed, self._block_size))

    def _found(self, share: Part, table: list[int]) -> list[Hit]:
        found = []
        for i, (block_id, count) in enumerate(zip(table, parts(share.first, self._block_size), strict=False)):
            # with as many tokens as this: 0.8.5 counts the blocks of a preempted request as cached that were given away
            versions = self._device.get(block_id, count) if share.known else None
            found.append(Hit(share.request_id, 0, i, block_id, count, versions))
        return found
