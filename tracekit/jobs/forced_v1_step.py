"""One step of V1's scheduler beside the recorded one, and what came out of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tracekit.jobs.forced_engine import CannotForceError
from tracekit.jobs.forced_setup import compare_parts


def compare(
    engine_step: int, scheduled: Any, numbers: Mapping[str, int], rows: list[list[Any]], gone: list[int]
) -> None:
    """Make sure that a step is composed as it was.

    Args:
        engine_step: of the recording.
        scheduled: vLLM's SchedulerOutput.
        numbers: of the requests, by their ids.
        rows: request, tokens, position of the first, and sampled tokens, as recorded.
        gone: requests that were preempted.

    Raises:
        CannotForceError: it is composed otherwise.
    """
    cached = scheduled.scheduled_cached_reqs
    start = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
    start |= {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
    here = {numbers[r]: (n, start[r]) for r, n in scheduled.num_scheduled_tokens.items()}
    there = {request: (n, computed) for request, n, computed, _ in rows}
    compare_parts(engine_step, there, here)
    if not set(gone) <= {numbers[r] for r in scheduled.preempted_req_ids or ()}:
        raise CannotForceError(f"in engine step {engine_step} other requests are preempted than were recorded")


def found_blocks(scheduled: Any, block_size: int) -> Iterator[tuple[str, list[int]]]:
    """Yield the requests that begin or resume over KV that they found computed, and its blocks of the first group."""
    cached = scheduled.scheduled_cached_reqs
    admitted = [(new.req_id, new.num_computed_tokens, new.block_ids) for new in scheduled.scheduled_new_reqs]
    columns = zip(cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True)
    admitted += [own for own in columns if own[0] in cached.resumed_req_ids]
    for name, num_computed, blocks in admitted:
        if num_computed:
            yield name, list(blocks[0][: -(-num_computed // block_size)])


def logprob_of(output: Any, name: str) -> float:
    """What is reported of a request's token, in nats."""
    return float(output.logprobs.logprobs[output.req_id_to_index[name], 0])
