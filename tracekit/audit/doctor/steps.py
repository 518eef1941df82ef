"""Engine steps account for their requests, their scheduled tokens and every sampled token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.audit.doctor.sums import sum_by
from tracekit.audit.findings import BREAKS_REPLAY, MISLEADS, Array, Broken, Check, select
from tracekit.audit.rows import EngineRows, sequence_key
from tracekit.join import lookup
from tracekit.plural import plural
from tracekit.tables import PARTIAL


def _before(rows: EngineRows) -> Array:
    """The number of the step before each; before the first, that before the recorder was there."""
    return np.asarray(np.r_[(rows.since_step or 0) - 1, rows["steps"]["engine_step"]][:-1])


def _step_twice(rows: EngineRows) -> Iterator[Broken]:
    yield Broken(rows["steps"]["engine_step"] == _before(rows), rows["steps"], lambda _: "recorded twice")


def _step_hole(rows: EngineRows) -> Iterator[Broken]:
    before = _before(rows)
    hole = rows["steps"]["engine_step"] > before + 1
    yield Broken(hole, rows["steps"], lambda i: f"the step before it is {before[i]}")


def _step_requests(rows: EngineRows) -> Iterator[Broken]:
    steps, of = rows["steps"], rows.running["engine_step"]
    there = sum_by(steps["engine_step"], of, np.ones_like(of))
    told = steps["num_requests"]
    yield Broken(
        told < there if rows.is_sampled else told != there,
        steps,
        lambda i: (
            f"says that it ran {plural(int(steps['num_requests'][i]), 'request')}, its scheduled rows are {there[i]}"
        ),
    )


def _step_tokens(rows: EngineRows) -> Iterator[Broken]:
    steps, told = rows["steps"], rows["steps"]["num_scheduled_tokens"]
    there = sum_by(steps["engine_step"], rows.running["engine_step"], rows.running["num_tokens"])
    yield Broken(
        told < there if rows.is_sampled else told != there,
        steps,
        lambda i: f"says that it scheduled {plural(int(told[i]), 'token')}, its rows sum to {there[i]}",
    )


def _step_unknown(rows: EngineRows) -> Iterator[Broken]:
    orphan = rows.step_of(rows["scheduled"]["engine_step"]) < 0
    yield Broken(orphan, rows["scheduled"], lambda _: "scheduled in a step that is not there")


def _scheduled_twice(rows: EngineRows) -> Iterator[Broken]:
    key = sequence_key(rows.running)  # ascending
    same = key[1:] == key[:-1]
    again = np.r_[False, same][: key.size] | np.r_[same, False][: key.size]
    yield Broken(again, rows.running, lambda _: "scheduled twice in one step")


def _drafts(rows: EngineRows) -> Iterator[Broken]:
    drafted, tokens = rows.running["num_draft"], rows.running["num_tokens"]
    yield Broken(
        (drafted > 0) & (tokens != drafted + 1),
        rows.running,
        lambda i: f"{drafted[i]} drafted tokens among {tokens[i]}: a step verifies them after the last sampled one",
    )


def _nothing(rows: EngineRows) -> Iterator[Broken]:
    yield Broken(rows.running["num_tokens"] < 1, rows.running, lambda _: "scheduled with no token")


def _unscheduled(rows: EngineRows) -> Iterator[Broken]:
    tokens = rows["tokens"]
    yield Broken(
        lookup(sequence_key(rows.running), sequence_key(tokens)) < 0,
        tokens,
        lambda i: f"position {tokens['position'][i]} sampled in a step that did not schedule its request",
    )


def _in_partial_chunk(rows: EngineRows) -> Iterator[Broken]:
    tokens, partial = rows["tokens"], (rows.running["flags"] & PARTIAL) != 0
    yield Broken(
        lookup(sequence_key(rows.running)[partial], sequence_key(tokens)) >= 0,
        tokens,
        lambda i: f"position {tokens['position'][i]} sampled by a chunk that does not reach the end",
    )


def _without_token(rows: EngineRows) -> Iterator[Broken]:
    whole = select(rows.running, (rows.running["flags"] & PARTIAL) == 0)
    silent = lookup(np.sort(sequence_key(rows["tokens"])), sequence_key(whole)) < 0
    yield Broken(silent, whole, lambda _: "should have sampled and did not")


def _token_order(rows: EngineRows) -> Iterator[Broken]:
    tokens = rows.accepted
    request, step = tokens["request"], tokens["engine_step"]
    same = np.r_[False, request[1:] == request[:-1]][: request.size]
    before = np.r_[0, step][: step.size]
    yield Broken(
        same & (step < before if rows.speculates else step <= before),
        tokens,
        lambda i: f"position {tokens['position'][i]} is not from a later step than the one before it ({before[i]})",
    )


_STEPS = frozenset({"steps"})
_ROWS = frozenset({"steps", "scheduled"})
_SAMPLED = frozenset({"tokens", "scheduled"})
_REPORT = "Do not trust causes that rest on the engine's schedule, and report the trace with the version of vLLM."
_LEAVE_OUT = "Leave the requests it names out of any comparison, and report the trace with the version of vLLM."

CHECKS = (
    Check(
        "step-twice",
        MISLEADS,
        "An engine step is recorded once, else its requests and its weights are told twice.",
        _REPORT,
        _step_twice,
        _STEPS,
    ),
    Check(
        "step-hole",
        MISLEADS,
        "Steps are numbered without holes, from 0 or from an attach, else nobody knows what ran beside a token.",
        _REPORT,
        _step_hole,
        _STEPS,
    ),
    Check(
        "step-requests",
        MISLEADS,
        "A step has a scheduled row for each request that it says it ran, else a batch cannot be composed again.",
        _REPORT,
        _step_requests,
        _ROWS,
    ),
    Check(
        "step-tokens",
        MISLEADS,
        "The scheduled rows of a step sum to the tokens that it says it computed.",
        _REPORT,
        _step_tokens,
        _ROWS,
    ),
    Check(
        "step-unknown",
        MISLEADS,
        "What was scheduled was scheduled in a step that is there, else its weights and its time are not known.",
        _REPORT,
        _step_unknown,
        _ROWS,
    ),
    Check(
        "scheduled-twice",
        MISLEADS,
        "A step schedules a request once, else its tokens are counted twice.",
        _REPORT,
        _scheduled_twice,
        _ROWS,
    ),
    Check(
        "draft-of-other-length",
        MISLEADS,
        "A step that verifies drafted tokens computes them after the last sampled one, and nothing else.",
        _REPORT,
        _drafts,
        _ROWS,
    ),
    Check(
        "scheduled-nothing",
        MISLEADS,
        "A request that a step runs has at least one token to compute.",
        _REPORT,
        _nothing,
        _ROWS,
    ),
    Check(
        "token-unscheduled",
        BREAKS_REPLAY,
        "A token is sampled in a step that scheduled its request, else its weights and its context are another's.",
        _LEAVE_OUT,
        _unscheduled,
        _SAMPLED,
    ),
    Check(
        "token-in-partial-chunk",
        BREAKS_REPLAY,
        "A chunk of a prompt that does not reach its end samples nothing, so such a token has another's logprob.",
        _LEAVE_OUT,
        _in_partial_chunk,
        _SAMPLED,
    ),
    Check(
        "row-without-token",
        BREAKS_REPLAY,
        "A row that reaches the end of its request samples a token, else one is missing from the context.",
        _LEAVE_OUT,
        _without_token,
        _SAMPLED,
    ),
    Check(
        "token-order",
        BREAKS_REPLAY,
        "A token is from a later step than the one before it, else the two were stamped with each other's weights.",
        _LEAVE_OUT,
        _token_order,
        _SAMPLED,
    ),
)
