"""Tokens that the engine sampled, threw away, and then went on from as if they were there."""

import numpy as np

from tracekit.audit.rows import EngineRows, sequence_key
from tracekit.tables import ACCEPTED, PARTIAL, PREEMPTED

__all__ = ["deleted_tokens"]


def deleted_tokens(rows: EngineRows) -> list[tuple[int, int]]:
    """Return (request, position) where a rollout first goes on with more computed tokens than its output has.

    Requests whose discarded token was sampled anew are not among them. Speculative engines are left out: they discard
    drafts as a matter of course.
    """
    tokens, scheduled = rows["tokens"], rows["scheduled"]
    thrown = np.unique(tokens["request"][(tokens["flags"] & ACCEPTED) == 0])
    if rows.speculates or not thrown.size:
        return []
    ran = (scheduled["flags"] & (PREEMPTED | PARTIAL)) == 0
    key = sequence_key(scheduled["engine_step"], scheduled["request"])[ran]
    end = (scheduled["num_computed"] + scheduled["num_tokens"])[ran]
    order = np.argsort(key)
    key, end = key[order], end[order]
    after = rows.accepted
    mine = sequence_key(after["engine_step"], after["request"])
    at = np.minimum(np.searchsorted(key, mine), max(key.size - 1, 0))
    if not key.size:
        return []
    ahead = (key[at] == mine) & np.isin(after["request"], thrown) & (end[at] > after["position"])
    requests, first = np.unique(after["request"][ahead], return_index=True)
    return list(zip(requests.tolist(), after["position"][ahead][first].tolist(), strict=True))
