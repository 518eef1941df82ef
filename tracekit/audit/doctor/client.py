"""The client's own view of its completions against the engine's, bit for bit."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tracekit.audit.findings import Finding, Violation
from tracekit.audit.rows import EngineRows

__all__ = ["Completion", "client_view"]

Completion = Mapping[str, Any]  # a row of jobs.rollout.read_view


def client_view(engines: Sequence[EngineRows], view: Sequence[Completion]) -> list[Finding]:
    """Find each completion in the trace, and compare prompt, token ids, float32 logprobs and finish reason.

    The engine may hold more tokens than the client where the client ended the request (a stop string, an abort).
    """
    known: dict[tuple[str, int], list[tuple[EngineRows, int]]] = defaultdict(list)
    for rows in engines:
        names = rows.requests.column("external_id").to_pylist()
        indexes = rows.requests.column("index").to_pylist()
        for row, key in enumerate(zip(names, indexes, strict=True)):
            known[key].append((rows, row))
    wrong: dict[tuple[str, int], list[Violation]] = defaultdict(list)
    for seen in view:
        name = f"completion {seen['index']} of request {seen['request_id']!r}"
        candidates = known[str(seen["request_id"]), int(seen["index"])]
        if not candidates:
            first = engines[0].engine if engines else 0
            wrong["client-unknown", first].append(Violation(f"{name} is not in the trace"))
            continue
        # a caller may use a name twice
        told = [_compare(rows, row, seen) for rows, row in candidates]
        if all(told):
            rows, row = candidates[0]
            check, text = next(problem for problem in told if problem is not None)
            wrong[check, rows.engine].append(Violation(f"{name}: {text}", int(rows["requests"]["request"][row])))
    return [Finding(check, engine, len(found), found) for (check, engine), found in wrong.items()]


def _compare(rows: EngineRows, row: int, seen: Completion) -> tuple[str, str] | None:
    number = rows["requests"]["request"][row]
    tokens = rows.accepted
    begin, end = np.searchsorted(tokens["request"], [number, number + 1])
    ids, theirs = tokens["token_id"][begin:end], np.asarray(seen["token_ids"], dtype=np.int64)
    if rows.requests.column("prompt_token_ids")[row].as_py() != list(seen["prompt_token_ids"]):
        return "client-prompt", "the client sent another prompt"
    count = min(ids.size, theirs.size)
    differs = np.flatnonzero(ids[:count] != theirs[:count])
    if differs.size:
        i = int(differs[0])
        return "client-tokens", f"output token {i} is {theirs[i]} for the client, {ids[i]} in the trace"
    done = rows["finishes"]
    at = np.flatnonzero(done["request"] == number)
    reason = rows.reasons[int(at[0])] if at.size else None
    client_ended = bool(rows.sampling[row].get("stop")) or reason in (None, "abort")
    if theirs.size > ids.size or (theirs.size < ids.size and not client_ended):
        return "client-tokens", f"the client received {theirs.size} tokens, the trace has {ids.size}"
    if seen.get("logprobs") is not None:
        own = np.asarray(seen["logprobs"], dtype=np.float32)
        ours = tokens["rollout_logprob"][begin:end][: theirs.size]
        if own.size != theirs.size:
            return "client-logprobs", f"the client received {own.size} logprobs for {theirs.size} tokens"
        differs = np.flatnonzero(ours.view(np.uint32) != own.view(np.uint32))
        if differs.size:
            return "client-logprobs", f"the logprob of output token {int(differs[0])} is not the client's, bit for bit"
    if not client_ended and seen.get("finish_reason") not in (None, reason):
        return "client-finish", f"finished with {seen['finish_reason']} for the client, {reason} in the trace"
    return None
