"""The engine itself computes other values when the same tokens are forced through it in the same composition."""

from __future__ import annotations

from math import nan

import numpy as np

from tracekit.diagnose.data import F8, I8, INFERENCE_PATH, Mask, Run
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.metrics import bit_equal
from tracekit.diagnose.onset import onset_at
from tracekit.diagnose.reran import COMPOSED

CODE: Code = "state"


def detect(evidence: Evidence) -> list[Explanation]:
    """Name state where an engine that repeats a clean run to the bit does not repeat this one.

    An engine of another version, machine or weights is no proof, so its rollouts are left out.
    """
    run = evidence.run
    if run.reran is None or COMPOSED not in run.reran.values:
        return []
    again = run.reran.values[COMPOSED]
    same = np.array([own.engine for own in run.reran.engines if own.is_same], dtype=np.int64)
    off = np.isfinite(again) & run.valid & np.isin(run.engine, same) & ~bit_equal(run.rollout_logprob, again)
    if not off.any():
        return []
    hit = np.flatnonzero(off)
    rollouts, at = np.unique(run.rollout[hit], return_index=True)
    firsts = hit[at]
    first = int(np.lexsort((firsts, run.engine_step[firsts]))[0])
    events = {name: happened[firsts] for name, happened in _events(run).items()}
    return [
        Explanation(
            CODE,
            INFERENCE_PATH,
            margin=nan,
            share=nan,
            since=onset_at(run, again, np.zeros(again.size), int(firsts[first])),
            since_rollout=int(rollouts[first]),
            rollouts=rollouts.tolist(),
            numbers={
                "count": float(hit.size),
                "nats": float(np.abs(run.rollout_logprob - again)[hit].max()),
                **{name: float(np.count_nonzero(own)) for name, own in events.items()},
            },
            names=[name for name, own in events.items() if own[first]],
        )
    ]


def _events(run: Run) -> dict[str, Mask]:
    """[N] by name, whether a token is the first of its rollout after something that the trace tells of."""
    begins = np.r_[True, np.diff(run.rollout) != 0]
    events = {"weight update": ~begins & _moves(run.weight_version)}
    if run.strata is not None:
        resumed = ~begins & _moves(run.strata.num_preempted)
        events["cache hit"] = (begins | resumed | _moves(run.strata.num_cached)) & (run.strata.num_cached > 0)
        events["preemption"] = resumed
    return events


def _moves(values: I8 | F8) -> Mask:
    moves: Mask = np.r_[False, np.diff(values) != 0]
    return moves
