"""The residuals grow with the position, whatever the rollout: rotary embeddings, windows and the like differ.

By likelihood: residuals whose scale is c (p / P)^k, p the position and P the last, against those of one scale,
against those that are clean up to some position and of one scale after it, as of a fault that is switched on there, and
against those of two scales that a change in time sets apart.
"""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import F8, I8, INFERENCE_PATH
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.cited import cited
from tracekit.diagnose.explain.place import place_of_onsets
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.scales import Telling, changes_in_time, telling
from tracekit.diagnose.semantic import MARGIN

CODE: Code = "grows with position"

_POWERS = (0.5, 1.0, 2.0)
_STEPS = 24
_MOST_TOKENS = 4096
_LEAST_GROWTH = 2.0  # of the scale, from the first quarter of the positions to the last


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the growth where it beats one scale, and a step, by `MARGIN` nats."""
    tokens = telling(evidence, _MOST_TOKENS)
    if tokens is None:
        return []
    position = evidence.run.position[tokens.index]
    relative = (position + 1) / (position.max() + 1)
    growing = max(tokens.one(relative**power) for power in _POWERS)
    in_time = (tokens.two(change)[0] for change in changes_in_time(evidence.run, tokens))
    margin = growing - max(tokens.one(), _step(tokens, position), *in_time)
    growth = _growth(np.abs(tokens.z), position)
    if margin < MARGIN or growth < _LEAST_GROWTH:
        return []
    return [
        Explanation(
            CODE,
            INFERENCE_PATH,
            margin=margin,
            share=1.0,
            **place_of_onsets(evidence.rollouts),
            numbers={"growth": growth},
            cited=cited(evidence, "trainer-config-differs", "overridden-config"),
        )
    ]


def _step(tokens: Telling, position: I8) -> float:
    starts = np.unique(np.quantile(position, np.linspace(0, 1, _STEPS, endpoint=False)).astype(np.int64))
    return max(tokens.one((position >= start).astype(float)) for start in starts)


def _growth(sizes: F8, position: I8) -> float:
    """Median size in the last quarter of the tokens by position, over that in the first."""
    low, high = np.quantile(position, [0.25, 0.75])
    before = float(np.median(sizes[position <= low]))
    return float(np.median(sizes[position >= high])) / max(before, 1e-9)
