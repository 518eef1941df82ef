"""Tokens of a certain batch size, of decode steps, or from a position on leave their replay, and the others do not.

This says where, not why. By likelihood: residuals of one scale under the circumstance and of another without it,
against one scale for all, and against a change at an engine step or an output index that the circumstance does not
follow.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log

import numpy as np

from tracekit.diagnose.data import INFERENCE_PATH, Mask
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_under_lens
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.gains import share_of
from tracekit.diagnose.scales import MOST_EDGES, Telling, changes_in_time, edges, telling
from tracekit.diagnose.semantic import MARGIN

BATCH: Code = "certain batch sizes"
DECODE: Code = "decode steps"
EDGE: Code = "from a position on"
CODES: tuple[Code, ...] = (BATCH, DECODE, EDGE)

_MOST_TOKENS = 4096
_CHOICE = log(MOST_EDGES)  # nats, for the choice of an edge
_SAME = 1.0  # nats: two changes that fit as well are one


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the circumstance that tells these tokens best, where nothing explains more than half of the run."""
    tokens = telling(evidence, _MOST_TOKENS)
    if tokens is None:
        return []
    fits = [
        (tokens.apart(inside) - _CHOICE, code, name, inside) for code, name, inside in _circumstances(evidence, tokens)
    ]
    fits = [fit for fit in fits if fit[0] >= MARGIN]
    if not fits:
        return []
    nats, code, name, inside = max(fits, key=lambda fit: fit[0])
    other = max((tokens.apart(change) - _CHOICE for change in changes_in_time(evidence.run, tokens)), default=0.0)
    # of an edge in the position, a change in time is another cause; batch and phase are what time brought along
    if nats < other + (MARGIN if code == EDGE else -_SAME):
        return []
    _, scale, rest = tokens.two(inside)
    mask = np.zeros(evidence.run.token_id.size, dtype=bool)
    mask[tokens.index[inside]] = True
    beyond = mask & (np.abs(evidence.judged.z) > evidence.judged.floor.threshold)
    return [
        Explanation(
            code,
            INFERENCE_PATH,
            margin=min(nats, nats - other) if code == EDGE else nats,
            share=share_of(evidence, mask),
            **place_under_lens(evidence, beyond if beyond.any() else mask),
            numbers={"scale": scale, "rest": rest, "num_tokens": float(inside.sum())},
            names=[name],
        )
    ]


def _circumstances(evidence: Evidence, tokens: Telling) -> Iterator[tuple[Code, str, Mask]]:
    run, use = evidence.run, tokens.index
    if run.strata is not None:
        sizes, prefill = run.strata.batch_size[use], run.strata.prefill[use] == 1
        if np.any(prefill) and np.all(run.strata.prefill[use] >= 0):
            yield DECODE, "", ~prefill
        own = sizes[~prefill]  # a step with prompts in it is of another size in rows
        for edge in edges(own[own > 0]):
            yield BATCH, f"of {edge} or more", (sizes >= edge) & ~prefill
            yield BATCH, f"of less than {edge}", (sizes < edge) & (sizes > 0) & ~prefill
    for edge in edges(run.position[use]):
        yield EDGE, str(edge), run.position[use] >= edge
