"""What the hooks tell the encoder: one NamedTuple per kind of event, of references only.

They are made on the engine's thread and read on the recorder's, by the dispatch table of `rows.Rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from tracekit.recorder.vllm.fingerprint import Tensors

# `make(Step, (...))` is `Step(...)` without the Python frame of a NamedTuple's own constructor, and needs every field:
# for the two that are made at every step, on the engine's thread
make = tuple.__new__

Pairs = Sequence[tuple[int, int]]

EMPTY: Mapping[str, Any] = MappingProxyType({})


class Dispatch(NamedTuple):
    """What is stamped on a step when its forward is dispatched."""

    engine_step: int
    time_ns: int
    weight_version: int
    num_waiting: int  # requests
    num_free_blocks: int  # of the KV cache


class Moves(NamedTuple):
    """KV blocks that V0's worker moves before a step, as (source, destination)."""

    swap_in: Pairs = ()  # from the CPU's blocks to the device's
    swap_out: Pairs = ()
    copy: Pairs = ()


class TableRow(NamedTuple):
    """A row that is complete: of the tables `engines`, `workers`, `weights` and `control`."""

    table: str
    row: dict[str, Any]


class Fingerprints(NamedTuple):
    """The fingerprints of one weight version's tensors."""

    weight_version: int
    tensors: Tensors


class Named(NamedTuple):
    """The caller's own id of a request; V1 gives the scheduler another."""

    request_id: str
    external_id: str


class Admitted(NamedTuple):
    """A request that the engine has taken."""

    time_ns: int
    request: Any  # V0: SequenceGroup; V1: Request
    again: bool = False  # another of its id is under way, which V0 lets a caller do


class Joined(NamedTuple):
    """A request that was under way when the recorder was attached."""

    time_ns: int
    request: Any  # as in `Admitted`
    engine_step: int  # the first that is recorded
    num_computed: int  # tokens with KV before that step
    token_ids: Sequence[int]  # of its output, sampled before


class Step(NamedTuple):
    """An engine step that has come to its end."""

    at: Dispatch | None  # None where nobody saw it being scheduled
    scheduled: Any  # V0: the metadata of each group; V1: SchedulerOutput
    outputs: Any  # V0: the sampler's output of each group; V1: EngineCoreOutputs of each client
    output_ns: int
    # V1: what the model runner gave the scheduler, as it was before the scheduler worked on it
    token_ids: Sequence[Sequence[int]] = ()  # by row
    row_of: Mapping[str, int] = EMPTY  # by request
    logprobs: Any = None  # vLLM's LogprobsLists
    column: Any = None  # [rows] float32, the logprobs that we computed beside the engine's (`v1.column`)
    # V0: of this step and of those before it that ran nothing
    moves: Sequence[Moves] = ()
    prompts: Mapping[str, Any] = EMPTY  # V1: vLLM's LogprobsTensors of whole prompts, by request


class Preempted(NamedTuple):
    """A request that gave way; V1 tells so in its steps."""

    request_id: str
    recomputes: bool  # it loses its KV; else it is swapped out


class Finished(NamedTuple):
    """Requests that came to their end outside of a step's outputs."""

    request_ids: Sequence[str]
    reason: str
    engine_step: int
    time_ns: int
    num_output_tokens: int | None = None  # where the engine tells it, of each


Event = TableRow | Fingerprints | Named | Admitted | Joined | Step | Preempted | Finished
