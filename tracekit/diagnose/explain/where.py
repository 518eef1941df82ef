"""What all rollouts that diverge have in common, and no other has: an engine, a weight version, a prefix hit.

This says where, not why: it is named where no cause explains the run. By Fisher's exact test on rollouts (R. A. Fisher,
"The Logic of Inductive Inference", 1935): how likely a circumstance has as many of the rollouts that diverge by chance.
Or by likelihood of their tokens, where there are too few rollouts for that: of residuals of one scale with it and of
another without it, against one scale for all.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import exp, inf, lgamma, log

import numpy as np

from tracekit.diagnose.chance import binomial_tail
from tracekit.diagnose.data import INFERENCE_PATH, Mask, Run
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.cited import cited
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.gains import share_of
from tracekit.diagnose.noise import FALSE_ROLLOUTS
from tracekit.diagnose.scales import telling

ALONE: Code = "one engine"
VERSION: Code = "one weight version"
CACHED: Code = "cached requests"
PREEMPTED: Code = "preempted requests"
CODES: tuple[Code, ...] = (ALONE, VERSION, CACHED, PREEMPTED)

_CITED = {
    CACHED: ("hit-unexplained", "cache-coverage", "cache-version", "resumed-on-foreign-blocks", "prefix-hits"),
    PREEMPTED: ("resumed-unexplained", "resumed-on-foreign-blocks", "preemptions"),
    VERSION: ("deleted-token", "num-changed", "fingerprint-of-no-version"),
}
_MOST_CHANCE = 1e-3  # that it separates them as well by chance
_LEAST_CHANCE = 0.01  # that a clean run has as many of those without it
_NEAR = 10.0  # times as likely by chance is as good
_MOST_TOKENS = 4096


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the circumstance that separates the rollouts that diverge best; those that fit as well stand beside it."""
    tokens = telling(evidence, _MOST_TOKENS)
    if tokens is None:
        return []
    hit = np.array([r.onset is not None for r in evidence.rollouts])
    fits = []
    circumstances = [
        (code, name, having) for code, name, having in _circumstances(evidence.run) if 0 < having.sum() < hit.size
    ]
    num_tests = len({(having ^ having[0]).tobytes() for _, _, having in circumstances})  # one and its opposite are one
    for code, name, having in circumstances:
        unlike = exp(-max(tokens.apart(having[evidence.run.rollout[tokens.index]]), 0.0))
        chance = num_tests * min(_chance(hit, having), unlike)
        outside = binomial_tail(int(np.count_nonzero(hit & ~having)), int((~having).sum()), FALSE_ROLLOUTS)
        if chance <= _MOST_CHANCE and outside > _LEAST_CHANCE and np.any(hit & having):
            fits.append((chance, code, name, having))
    if not fits:
        return []
    chance, code, name, having = min(fits, key=lambda fit: fit[0])
    rollouts = np.flatnonzero(hit & having).tolist()
    first = min(rollouts, key=lambda i: evidence.rollouts[i].onset.engine_step)  # type: ignore[union-attr]
    return [
        Explanation(
            code,
            INFERENCE_PATH,
            margin=-log(max(chance, 1e-300)),
            share=share_of(evidence, having[evidence.run.rollout]),
            since=evidence.rollouts[first].onset,
            since_rollout=first,
            rollouts=rollouts,
            numbers={
                "having": float(having.sum()),
                "hit": float(len(rollouts)),
                "outside": float(np.count_nonzero(hit & ~having)),
            },
            names=[name],
            alternatives=sorted({other for near, other, _, _ in fits if other != code and near <= chance * _NEAR}),
            cited=cited(evidence, *_CITED.get(code, ())),
        )
    ]


def _circumstances(run: Run) -> Iterator[tuple[Code, str, Mask]]:
    """Each with its name and the rollouts, [R], that have it."""
    engines = np.array([r.engine for r in run.rollouts])
    for engine in np.unique(engines).tolist():
        yield ALONE, str(engine), engines == engine
    for version in np.unique(run.weight_version).tolist():
        yield VERSION, str(version), _any(run, run.weight_version == version)
    if run.strata is not None:
        yield CACHED, "", _any(run, run.strata.num_cached > 0)
        yield PREEMPTED, "", _any(run, run.strata.num_preempted > 0)


def _any(run: Run, tokens: Mask) -> Mask:
    return np.bincount(run.rollout[tokens], minlength=len(run.rollouts)) > 0


def _chance(hit: Mask, having: Mask) -> float:
    """How likely those that have it are given as many of the hits by chance: the hypergeometric tail."""
    total, hits, own, both = hit.size, int(hit.sum()), int(having.sum()), int((hit & having).sum())
    terms = [_choose(own, k) + _choose(total - own, hits - k) for k in range(both, min(hits, own) + 1)]
    return min(sum(exp(term - _choose(total, hits)) for term in terms if term > -inf), 1.0)


def _choose(n: int, k: int) -> float:
    """Log of n over k."""
    return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) if 0 <= k <= n else -inf
