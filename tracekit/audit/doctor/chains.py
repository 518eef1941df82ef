"""How many tokens of a request had KV before each of its steps: a chain that only a named event may break."""

import numpy as np

from tracekit.audit.findings import Array, Columns, Finding, finding
from tracekit.audit.rows import EngineRows, sequence_key
from tracekit.tables import ACCEPTED, NEW, PARTIAL, PREEMPTED, PREFILL, RESUMED

__all__ = ["computed", "flagged", "sampled_positions"]


def computed(rows: EngineRows) -> list[Finding]:
    """``num_computed`` is what the row before left, but where the request is new, preempted or resumed."""
    chain = _by_request(rows["scheduled"])
    request, flags = chain["request"], chain["flags"]
    if not request.size:
        return []
    first = np.r_[True, request[1:] != request[:-1]]
    new, resumed, preempted = ((flags & flag) != 0 for flag in (NEW, RESUMED, PREEMPTED))
    was_preempted = np.r_[False, preempted[:-1]] & ~first
    starts = new | resumed
    left = np.r_[0, (chain["num_computed"] + chain["num_tokens"])[:-1]]
    start, num_computed = np.r_[0, chain["num_computed"][:-1]], chain["num_computed"]
    goes_on = ~first & ~starts & ~preempted & ~was_preempted
    # rejected drafts are computed again
    fits = (num_computed > start) & (num_computed <= left) if rows.speculates else num_computed == left

    def jump(i: int) -> str:
        return f"starts at {num_computed[i]} computed tokens where the row before left {left[i]}"

    return [
        *finding("chain-start", rows.engine, first & (~new | resumed), chain, lambda _: "its first row is not new"),
        *finding(
            # some runners bring a request back as a new one after a preemption
            "new-again",
            rows.engine,
            ~first & new & ~was_preempted,
            chain,
            lambda _: "new a second time",
        ),
        *finding(
            "preempted-and-running",
            rows.engine,
            was_preempted & ~starts & ~preempted,
            chain,
            lambda _: "runs after a preemption without having been resumed",
        ),
        *finding(
            "preempted-twice", rows.engine, was_preempted & preempted, chain, lambda _: "preempted while it was out"
        ),
        *finding("computed-jump", rows.engine, goes_on & ~fits, chain, jump),
    ]


def flagged(rows: EngineRows) -> list[Finding]:
    """A request resumes after a preemption or a reset of the cache, and what computes prompt tokens says so."""
    chain = _by_request(rows["scheduled"])
    request, flags, step = chain["request"], chain["flags"], chain["engine_step"]
    if not request.size:
        return []
    going_on = np.r_[False, request[1:] == request[:-1]]
    was_preempted = np.r_[False, (flags[:-1] & PREEMPTED) != 0] & going_on
    resets = np.array(
        [row["engine_step"] for row in rows.control if row["name"] == "reset_prefix_cache"], dtype=np.int64
    )
    resets.sort()
    before = np.r_[0, step[:-1]]
    # a reset with running requests preempts them all without a row for each
    reset = np.searchsorted(resets, before, side="right") < np.searchsorted(resets, step, side="right")
    resumed = ((flags & RESUMED) != 0) & going_on
    at = rows.row_of(request)
    prompt = np.where(at < 0, 0, rows.num_prompt[at] if rows.num_prompt.size else 0)
    ran = (flags & PREEMPTED) == 0
    return [
        *finding(
            "resumed-unexplained",
            rows.engine,
            resumed & ~was_preempted & ~reset,
            chain,
            lambda _: "resumed without a preemption or a reset of the cache",
        ),
        *finding(
            "prefill-unflagged",
            rows.engine,
            ran & (chain["num_computed"] < prompt) & ((flags & PREFILL) == 0),
            chain,
            lambda i: f"computes prompt tokens from {chain['num_computed'][i]} on and is not flagged as prefill",
        ),
    ]


def sampled_positions(rows: EngineRows) -> list[Finding]:
    """A token's position is the number of tokens that its step had computed."""
    if rows.speculates:
        return []
    scheduled, tokens = rows["scheduled"], rows["tokens"]
    ran = (scheduled["flags"] & (PREEMPTED | PARTIAL)) == 0
    key = sequence_key(scheduled["engine_step"], scheduled["request"])[ran]
    end = (scheduled["num_computed"] + scheduled["num_tokens"])[ran]
    order = np.argsort(key)
    key, end = key[order], end[order]
    if not key.size:
        return []
    at = np.minimum(np.searchsorted(key, sequence_key(tokens["engine_step"], tokens["request"])), key.size - 1)
    known = key[at] == sequence_key(tokens["engine_step"], tokens["request"])
    # a token that the engine sampled and threw away stays in the KV of those after it
    clean = ~np.isin(tokens["request"], tokens["request"][(tokens["flags"] & ACCEPTED) == 0])
    wrong = known & clean & (tokens["position"] != end[at])
    return finding(
        "position-computed",
        rows.engine,
        wrong,
        tokens,
        lambda i: f"position {tokens['position'][i]} sampled when {end[at[i]]} tokens were computed",
    )


def _by_request(scheduled: Columns) -> Columns:
    """The rows in order of (request, step); a request preempted and resumed in one step is preempted first."""
    running: Array = (scheduled["flags"] & PREEMPTED) == 0
    order = np.lexsort((running, scheduled["engine_step"], scheduled["request"]))
    return {name: values[order] for name, values in scheduled.items()}
