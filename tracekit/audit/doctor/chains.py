"""How many tokens of a request had KV before each of its steps: a chain that only a named event may break."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.audit.findings import BREAKS_REPLAY, MISLEADS, Array, Broken, Check, select
from tracekit.audit.rows import EngineRows, sequence_key
from tracekit.join import lookup, pick
from tracekit.plural import plural
from tracekit.tables import ACCEPTED, NEW, PARTIAL, PREEMPTED, PREFILL, RESUMED


def _has(rows: EngineRows, flag: int) -> Array:
    """Rows of the chain that have a flag."""
    return np.asarray((rows.chain["flags"] & flag) != 0)


def _first(rows: EngineRows) -> Array:
    """Rows of the chain that are the first of their request."""
    request = rows.chain["request"]
    return np.asarray(np.r_[True, request[1:] != request[:-1]][: request.size])


def _was_preempted(rows: EngineRows) -> Array:
    """Rows of the chain that follow a preemption of their request."""
    return np.asarray(np.r_[False, _has(rows, PREEMPTED)][:-1] & ~_first(rows))


def _chain_start(rows: EngineRows) -> Iterator[Broken]:
    known = ~np.isin(rows.chain["request"], rows["joined"]["request"])
    wrong = _first(rows) & known & (~_has(rows, NEW) | _has(rows, RESUMED))
    yield Broken(wrong, rows.chain, lambda _: "its first row is not new")


def _new_again(rows: EngineRows) -> Iterator[Broken]:
    # some runners bring a request back as a new one after a preemption
    wrong = ~_first(rows) & _has(rows, NEW) & ~_was_preempted(rows)
    yield Broken(wrong, rows.chain, lambda _: "new a second time")


def _runs_preempted(rows: EngineRows) -> Iterator[Broken]:
    wrong = _was_preempted(rows) & ~_has(rows, NEW | RESUMED | PREEMPTED)
    yield Broken(wrong, rows.chain, lambda _: "runs after a preemption without having been resumed")


def _preempted_twice(rows: EngineRows) -> Iterator[Broken]:
    wrong = _was_preempted(rows) & _has(rows, PREEMPTED)
    yield Broken(wrong, rows.chain, lambda _: "preempted while it was out")


def _computed_jump(rows: EngineRows) -> Iterator[Broken]:
    now = rows.chain["num_computed"]
    start = np.r_[0, now][:-1]
    left = np.r_[0, now + rows.chain["num_tokens"]][:-1]
    goes_on = ~_first(rows) & ~_was_preempted(rows) & ~_has(rows, NEW | RESUMED | PREEMPTED)
    # rejected drafts are computed again
    fits = (now > start) & (now <= left) if rows.speculates else now == left
    yield Broken(
        goes_on & ~fits,
        rows.chain,
        lambda i: f"starts at {now[i]} computed tokens where the row before left {left[i]}",
    )


def _resumed_unexplained(rows: EngineRows) -> Iterator[Broken]:
    step = rows.chain["engine_step"]
    resets = [row["engine_step"] for row in rows.control if row["name"] == "reset_prefix_cache"]
    ordered = np.sort(np.array(resets, dtype=np.int64))
    before = np.r_[0, step][:-1]
    # a reset with running requests preempts them all without a row for each
    reset = np.searchsorted(ordered, before, side="right") < np.searchsorted(ordered, step, side="right")
    wrong = _has(rows, RESUMED) & ~_first(rows) & ~_was_preempted(rows) & ~reset
    yield Broken(wrong, rows.chain, lambda _: "resumed without a preemption or a reset of the cache")


def _prefill_unflagged(rows: EngineRows) -> Iterator[Broken]:
    chain = rows.chain
    on_prompt = chain["num_computed"] < rows.prompt_of(chain["request"])
    yield Broken(
        on_prompt & ~_has(rows, PREEMPTED | PREFILL),
        chain,
        lambda i: f"computes prompt tokens from {chain['num_computed'][i]} on and is not flagged as prefill",
    )


def _position_computed(rows: EngineRows) -> Iterator[Broken]:
    if rows.speculates:
        return
    whole, tokens = select(rows.running, (rows.running["flags"] & PARTIAL) == 0), rows["tokens"]
    at = lookup(sequence_key(whole), sequence_key(tokens))
    end = pick(whole["num_computed"] + whole["num_tokens"], at, tokens["position"])
    # a token that the engine sampled and threw away stays in the KV of those after it
    clean = ~np.isin(tokens["request"], tokens["request"][(tokens["flags"] & ACCEPTED) == 0])
    yield Broken(
        clean & (tokens["position"] != end),
        tokens,
        lambda i: f"position {tokens['position'][i]} sampled when {plural(int(end[i]), 'token')} had been computed",
    )


_SCHEDULED = frozenset({"scheduled"})
_EVENTS = frozenset({"requests", "scheduled", "control"})
_REPORT = "Do not trust causes that rest on what was computed when, and report the trace with the version of vLLM."

CHECKS = (
    Check(
        "chain-start",
        MISLEADS,
        "The first row of a request is new, else what it had computed before is not known.",
        _REPORT,
        _chain_start,
        _SCHEDULED,
    ),
    Check(
        "new-again",
        MISLEADS,
        "A request is new once, or after a preemption, else its KV was computed twice without a reason.",
        _REPORT,
        _new_again,
        _SCHEDULED,
    ),
    Check(
        "preempted-and-running",
        MISLEADS,
        "A request that was preempted runs again after it was resumed, else its KV is another's.",
        _REPORT,
        _runs_preempted,
        _SCHEDULED,
    ),
    Check(
        "preempted-twice",
        MISLEADS,
        "Only a request that runs can be preempted.",
        _REPORT,
        _preempted_twice,
        _SCHEDULED,
    ),
    Check(
        "computed-jump",
        MISLEADS,
        "A row goes on where the one before it ended, else the KV in between was computed by nobody.",
        _REPORT,
        _computed_jump,
        _SCHEDULED,
    ),
    Check(
        "resumed-unexplained",
        MISLEADS,
        "A request resumes after a preemption or a reset of the cache, else nobody knows why its KV is new.",
        _REPORT,
        _resumed_unexplained,
        _EVENTS,
    ),
    Check(
        "prefill-unflagged",
        MISLEADS,
        "What computes prompt tokens is flagged as prefill, else prefill is taken for decode.",
        _REPORT,
        _prefill_unflagged,
        _EVENTS,
    ),
    Check(
        "position-computed",
        BREAKS_REPLAY,
        "A token's position is the number of tokens that its step had computed, else its context was another.",
        "Leave the requests it names out of any comparison; `tracekit lint` tells whether the engine lost a token.",
        _position_computed,
        frozenset({"tokens", "scheduled"}),
    ),
)
