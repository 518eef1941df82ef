"""The recorded values were rounded on their way: to a narrow type, or to a few decimals.

Proved by the values alone: of float32 numbers one in 65,536 is a bfloat16 one by chance.
"""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import F8, SEMANTIC
from tracekit.diagnose.density import Density
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.profile import to_bfloat16
from tracekit.diagnose.trial import attempt

CODE: Code = "rounded logprobs"
LEAST_VALUES = 16  # different ones
MOST_DECIMALS = 4  # more leave too little to prove it by


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the type, or the decimals, where all values have it and some leave the replay."""
    run = evidence.run
    use = np.flatnonzero(run.valid & ~evidence.tried.sentinels)
    recorded = run.rollout_logprob[use]
    told = _rounding(recorded) if evidence.asks else None
    if told is None:
        return []
    name, half = told
    own, gain = run.trainer.logprob(evidence.lens)[use], run.trainer.gain(evidence.lens)[use]
    off = recorded - own
    density = Density.of(evidence.judged.floor)
    before = density.at(off, gain)
    after = density.at(np.maximum(np.abs(off) - half, 0.0), gain)
    tried = attempt(after, before, density.usual(gain), run.engine_step[use], run.rollout[use])
    moved = use[np.abs(off) > evidence.judged.sigma[use]]
    numbers = {"largest": float(half.max()), "num_tokens": float(use.size), "nats": tried.part.nats}
    nan = float("nan")
    return [
        Explanation(
            CODE,
            SEMANTIC,
            margin=nan,
            share=max(tried.share, 0.0),
            **place_of(evidence, moved if moved.size else use),
            numbers=numbers,
            names=[name],
        )
    ]


def _rounding(values: F8) -> tuple[str, F8] | None:
    """What all values were rounded to, and by how much each may have been moved, [n] nats; None for nothing."""
    if np.unique(values[values != 0]).size < LEAST_VALUES:
        return None
    with np.errstate(over="ignore"):
        if np.array_equal(to_bfloat16(values), values):
            return "bfloat16", np.abs(values) * 2.0**-8
        if np.array_equal(values.astype(np.float16).astype(np.float64), values):
            return "float16", np.abs(values) * 2.0**-11
    for decimals in range(1, MOST_DECIMALS + 1):
        scaled = values * 10.0**decimals
        if (np.abs(scaled - np.round(scaled)) <= 2.0**-23 * np.maximum(np.abs(scaled), 1.0)).all():
            return f"{decimals} decimals", np.full(values.size, 0.5 * 10.0**-decimals)
    return None
