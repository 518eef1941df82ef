"""Engine steps account for their requests, their scheduled tokens and every sampled token."""

import numpy as np

from tracekit.audit.findings import Array, Finding, finding
from tracekit.audit.rows import EngineRows, sequence_key
from tracekit.tables import PARTIAL, PREEMPTED

__all__ = ["accounting", "numbering", "sampling", "sum_by"]


def numbering(rows: EngineRows) -> list[Finding]:
    """Steps are numbered from 0 without holes."""
    steps = rows["steps"]
    number = steps["engine_step"]
    before = np.r_[-1, number[:-1]] if number.size else number
    found = finding("step-twice", rows.engine, number == before, steps, lambda _: "recorded twice")
    return found + finding(
        "step-hole", rows.engine, number > before + 1, steps, lambda i: f"the step before it is {before[i]}"
    )


def accounting(rows: EngineRows) -> list[Finding]:
    """What a step says of itself is the sum of its scheduled rows."""
    steps, scheduled = rows["steps"], rows["scheduled"]
    ran = (scheduled["flags"] & PREEMPTED) == 0
    number, of_step, tokens = steps["engine_step"], scheduled["engine_step"][ran], scheduled["num_tokens"][ran]
    requests, in_rows = sum_by(number, of_step, np.ones_like(tokens)), sum_by(number, of_step, tokens)
    orphan = ~np.isin(scheduled["engine_step"], number)
    key = sequence_key(scheduled["engine_step"], scheduled["request"])[ran]
    ordered = np.sort(key)
    again = np.isin(key, ordered[1:][ordered[1:] == ordered[:-1]])
    running = {name: values[ran] for name, values in scheduled.items()}
    drafted = running["num_draft"]
    return [
        *finding(
            "step-requests",
            rows.engine,
            steps["num_requests"] != requests,
            steps,
            lambda i: f"says {steps['num_requests'][i]} requests, scheduled rows are {requests[i]}",
        ),
        *finding(
            "step-tokens",
            rows.engine,
            steps["num_scheduled_tokens"] != in_rows,
            steps,
            lambda i: f"says {steps['num_scheduled_tokens'][i]} scheduled tokens, its rows sum to {in_rows[i]}",
        ),
        *finding("step-unknown", rows.engine, orphan, scheduled, lambda _: "scheduled in a step that is not there"),
        *finding("scheduled-twice", rows.engine, again, running, lambda _: "scheduled twice in one step"),
        *finding(
            "draft-of-other-length",
            rows.engine,
            (drafted > 0) & (tokens != drafted + 1),
            running,
            lambda i: f"{drafted[i]} drafted tokens among {tokens[i]}: a step verifies them after the last sampled one",
        ),
        *finding("scheduled-nothing", rows.engine, tokens < 1, running, lambda _: "scheduled with no token"),
    ]


def sampling(rows: EngineRows) -> list[Finding]:
    """Every sampled token comes from one scheduled row that reaches the end, and every such row sampled."""
    tokens, scheduled = rows["tokens"], rows["scheduled"]
    ran = (scheduled["flags"] & PREEMPTED) == 0
    partial = (scheduled["flags"] & PARTIAL) != 0
    key = sequence_key(scheduled["engine_step"], scheduled["request"])
    of_token = sequence_key(tokens["engine_step"], tokens["request"])
    silent = ran & ~partial & ~np.isin(key, of_token)
    found = [
        *finding(
            "token-unscheduled",
            rows.engine,
            ~np.isin(of_token, key[ran]),
            tokens,
            lambda i: f"position {tokens['position'][i]} sampled in a step that did not schedule its request",
        ),
        *finding(
            "token-in-partial-chunk",
            rows.engine,
            np.isin(of_token, key[ran & partial]),
            tokens,
            lambda i: f"position {tokens['position'][i]} sampled by a chunk that does not reach the end",
        ),
        *finding("row-without-token", rows.engine, silent, scheduled, lambda _: "should have sampled and did not"),
    ]
    accepted = rows.accepted
    request, step = accepted["request"], accepted["engine_step"]
    same = np.r_[False, request[1:] == request[:-1]] if request.size else np.zeros(0, bool)
    before = np.r_[0, step[:-1]] if request.size else step
    wrong = same & (step < before if rows.speculates else step <= before)
    return found + finding(
        "token-order",
        rows.engine,
        wrong,
        accepted,
        lambda i: f"position {accepted['position'][i]} is not from a later step than the one before it ({before[i]})",
    )


def sum_by(keys: Array, of: Array, values: Array) -> Array:
    """Sum ``values`` by the key ``of`` each; ``keys`` are ascending, values of other keys are left out."""
    totals = np.zeros(keys.size, dtype=np.int64)
    if keys.size:
        at = np.minimum(np.searchsorted(keys, of), keys.size - 1)
        known = keys[at] == of
        np.add.at(totals, at[known], values[known])
    return totals
