"""Values that are no logprobs: what a framework or an engine writes where it has none, and what is no number."""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import SEMANTIC
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.semantic import NEITHER
from tracekit.diagnose.sentinels import IMPOSSIBLE, REPEATED

CODE: Code = "sentinel values"
ENOUGH = 0.5  # of a perfect replay
APART = 2.0  # times the largest residual of all other tokens
WARM = 0.7


def detect(evidence: Evidence) -> list[Explanation]:
    """Count and name them: impossible values, NaN, zeros of tokens that were not certain, values that come back."""
    run, which = evidence.run, evidence.tried.sentinels.copy()
    if sum(e.share for e in evidence.found if e.share == e.share) >= ENOUGH:
        which &= run.rollout_logprob <= IMPOSSIBLE  # a shifted zero is the value of a token that was certain
    # and to an engine with other weights other tokens are certain: a zero counts among values that agree
    others = np.bincount(run.rollout, weights=evidence.judged.beyond & ~which, minlength=len(run.rollouts))
    agree = (others == 0)[run.rollout] & (evidence.semantic.kind != NEITHER)
    # or far beyond all that is off, where neither a kept set of one nor a low temperature makes a token certain
    free = (run.kept_mass == 1) & (run.trainer.kept_count == run.trainer.kept_count.max(initial=0))
    free &= run.temperature >= WARM
    size = np.where(np.isfinite(evidence.judged.z), np.abs(evidence.judged.z), 0.0)
    apart = free & (size > APART * np.max(size[~which & (run.rollout_logprob != 0.0)], initial=0.0))
    which &= (run.rollout_logprob != 0.0) | agree | apart
    # where noise is wider than the kept set, it makes a token the only one that is kept
    which &= (run.rollout_logprob != 0.0) | evidence.judged.resolved
    if np.count_nonzero(~run.valid) >= REPEATED:  # what is missing here and there is withheld, and no convention
        which |= ~run.valid
    tokens = np.flatnonzero(which)
    if not tokens.size:
        return []
    values, counts = np.unique(run.rollout_logprob[tokens], return_counts=True)
    first = int(tokens[0])
    return [
        Explanation(
            CODE,
            SEMANTIC,
            margin=float("nan"),
            share=float("nan"),
            **place_of(evidence, tokens),
            numbers={
                "count": float(tokens.size),
                "position": float(run.position[first]),
                "request": float(run.rollouts[int(run.rollout[first])].request),
            },
            names=[f"{value:g}" for value in values[np.argsort(-counts, kind="stable")]],
        )
    ]
