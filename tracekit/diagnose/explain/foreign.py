"""Requests that found prefix-cache blocks of other tokens: a hash that is too short, or a table mixed up."""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import INFERENCE_PATH, KV_BORROWED
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.cited import cited
from tracekit.diagnose.explain.place import place_under_lens
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.gains import gain
from tracekit.diagnose.semantic import MARGIN

CODE: Code = "foreign blocks"
LEAST_SHARE = 0.5


def detect(evidence: Evidence) -> list[Explanation]:
    """Name them where no request computed the tokens that were found, and the KV of another prompt's explains values.

    Proof: doctor knows the tokens of every request that came before; behind the other prompt's tokens the recorded
    values are replayed.
    """
    scores = evidence.run.scores.get(KV_BORROWED)
    if scores is None:
        return []
    other = scores.logprob(evidence.lens)
    tested = np.isfinite(other)
    found = gain(evidence, other, where=tested)
    if found.nats < MARGIN or not found.share >= LEAST_SHARE:
        return []
    return [
        Explanation(
            CODE,
            INFERENCE_PATH,
            margin=found.nats,
            share=found.share,
            **place_under_lens(evidence, tested),
            numbers={"d_abs": found.d_abs_before, "d_abs_behind_other": found.d_abs_after},
            cited=cited(evidence, "hit-unexplained", "prefix-hits"),
        )
    ]
