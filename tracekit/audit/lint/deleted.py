"""Tokens that the engine sampled, threw away, and then went on from as if they were there."""

from __future__ import annotations

import numpy as np

from tracekit.audit.findings import select
from tracekit.audit.rows import EngineRows, sequence_key
from tracekit.join import lookup, pick
from tracekit.tables import ACCEPTED, PARTIAL


def deleted_tokens(rows: EngineRows) -> list[tuple[int, int]]:
    """Return (request, position) where a rollout first goes on with more computed tokens than its output has.

    Requests whose discarded token was sampled anew are not among them. Speculative engines are left out: they discard
    drafts as a matter of course.
    """
    tokens = rows["tokens"]
    thrown = np.unique(tokens["request"][(tokens["flags"] & ACCEPTED) == 0])
    if rows.speculates or not thrown.size:
        return []
    whole = select(rows.running, (rows.running["flags"] & PARTIAL) == 0)
    after = rows.accepted
    end = pick(whole["num_computed"] + whole["num_tokens"], lookup(sequence_key(whole), sequence_key(after)), 0)
    ahead = np.isin(after["request"], thrown) & (end > after["position"])
    requests, first = np.unique(after["request"][ahead], return_index=True)
    return list(zip(requests.tolist(), after["position"][ahead][first].tolist(), strict=True))
