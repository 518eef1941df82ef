"""The trainer's head has rows that the engine's has not: padding, over which its softmax adds up, too."""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import CUT_HEAD, SEMANTIC
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.gains import gain

CODE: Code = "padded head"
LEAST_NATS = 12.0
LEAST_SHARE = 0.25


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the padding where the values fit a head without it."""
    run, lens = evidence.run, evidence.lens
    if not evidence.asks or CUT_HEAD not in run.scores:
        return []
    cut, own = run.scores[CUT_HEAD].logprob(lens), run.trainer.logprob(lens)
    gained = gain(evidence, cut)
    if gained.nats < LEAST_NATS or not gained.share >= LEAST_SHARE:
        return []
    moved = np.flatnonzero(np.isfinite(cut) & (np.abs(cut - own) > evidence.judged.sigma))
    missing = -np.expm1(np.minimum(own - cut, 0.0))
    sizes = {"engine": float(evidence.facts.vocab_size or 0), "trainer": float(run.vocab_size)}
    return [
        Explanation(
            CODE,
            SEMANTIC,
            margin=gained.nats,
            share=gained.share,
            **place_of(evidence, moved),
            numbers={**sizes, "nats": gained.nats, "missing_mass": float(np.nanmean(missing))},
            names=["lm_head"],
        )
    ]
