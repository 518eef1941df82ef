"""Requests that began on cached blocks which older weights computed, under the weights that sampled them."""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import I8, INFERENCE_PATH, KV_RECOMPUTED, Mask
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.cited import cited
from tracekit.diagnose.explain.place import place_under_lens
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.gains import gain
from tracekit.diagnose.semantic import MARGIN

CODE: Code = "stale prefix blocks"


def detect(evidence: Evidence) -> list[Explanation]:
    """Name them where a trainer, who computes all KV under the token's weights, gets other values than were recorded.

    Proof: the recorded values fit the KV of older weights, which the trace tells, better than KV computed anew.
    """
    run, strata = evidence.run, evidence.run.strata
    if strata is None or KV_RECOMPUTED not in run.scores:
        return []
    stale = _stale(evidence)
    anew = run.scores[KV_RECOMPUTED].logprob(evidence.lens)
    stale &= np.isfinite(anew)
    kept = gain(evidence, run.trainer.logprob(evidence.lens), over=anew, where=stale)
    if not kept.num_tokens or kept.nats < MARGIN:
        return []
    pairs = np.unique(np.column_stack([strata.oldest_found, run.weight_version])[stale], axis=0).tolist()
    return [
        Explanation(
            CODE,
            INFERENCE_PATH,
            margin=kept.nats,
            share=kept.share,
            **place_under_lens(evidence, stale, anew),
            numbers={"d_abs": kept.d_abs_before, "d_abs_over_old": kept.d_abs_after},
            names=[f"{now} over KV of {old}" for old, now in pairs],
            cited=cited(evidence, "stale-prefix-hits", "prefix-caching-with-weight-updates"),
        )
    ]


def _stale(evidence: Evidence) -> Mask:
    """[N] tokens whose request found blocks that weights before a real change computed."""
    run, strata = evidence.run, evidence.run.strata
    assert strata is not None
    stale = np.zeros(run.token_id.size, dtype=bool)
    for engine in np.unique(run.engine).tolist():
        changed = sorted(c.version for c in evidence.facts.changes if c.engine == engine and c.num_changed != 0)
        between = np.searchsorted(changed, run.weight_version, side="right")
        between = between - np.searchsorted(changed, strata.oldest_found, side="right")
        stale |= (run.engine == engine) & (strata.num_cached > 0) & (strata.oldest_found >= 0) & (between > 0)
    # a request that was under way when the weights changed, and kept its own KV, is another matter
    return stale & (_first_version(evidence) > strata.oldest_found)


def _first_version(evidence: Evidence) -> I8:
    """[N] weight version of the first token of the token's rollout."""
    run = evidence.run
    _, first = np.unique(run.rollout, return_index=True)
    begun: I8 = run.weight_version[first][np.searchsorted(run.rollout[first], run.rollout)]
    return begun
