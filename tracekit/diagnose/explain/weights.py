"""The values fit the weights of another version than the trace says, in some rollouts or in all."""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import F8, I8, INFERENCE_PATH, WEIGHTS_AFTER, WEIGHTS_BEFORE, Mask, Run
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain import checkpoint, identity
from tracekit.diagnose.explain.cited import cited
from tracekit.diagnose.explain.place import place_under_lens
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.gains import Gain, gain
from tracekit.diagnose.semantic import MARGIN
from tracekit.diagnose.student import ahead

OLDER: Code = "older weights"
NEWER: Code = "newer weights"
CODES: tuple[Code, ...] = (OLDER, NEWER)
_PASSES = {OLDER: WEIGHTS_BEFORE, NEWER: WEIGHTS_AFTER}
_PROVED: tuple[Code, ...] = (identity.CODE, *checkpoint.CODES)
_VERSION = 2**32 - 1
_LEAST_SHARE = 0.5  # of what a perfect replay would gain in these rollouts


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the versions before and after their own, where rollouts fit them better by `MARGIN` nats each."""
    if not evidence.diverges:
        return []
    fits = {code: _fit(evidence, name) for code, name in _PASSES.items() if name in evidence.run.scores}
    found = []
    for code, (where, own) in fits.items():
        others = [gained.nats for other, (_, gained) in fits.items() if other != code]
        if own.nats >= MARGIN and own.share >= _LEAST_SHARE:
            found.append(_explanation(evidence, code, where, own, own.nats - max([0.0, *others])))
    # where fingerprints say it of the same rollouts, the numbers only agree
    proved = {i for other in evidence.found if other.code in _PROVED for i in other.rollouts}
    return [explanation for explanation in found if not proved.issuperset(explanation.rollouts)]


def _fit(evidence: Evidence, name: str) -> tuple[Mask, Gain]:
    """The tokens, [N], of rollouts that fit the pass better than the trainer's, and what it gains there."""
    run, noise = evidence.run, evidence.judged
    other = run.scores[name].logprob(evidence.lens)
    use = evidence.usable & np.isfinite(other) & (other != run.trainer.logprob(evidence.lens))
    nats = np.zeros(use.size)
    nats[use] = ahead((other - run.rollout_logprob)[use], evidence.d[use], noise.sigma[use], noise.floor.degrees)
    where: Mask = use & _ahead(nats, run.rollout)
    # some versions have no other before or after them, and are scored under their own
    where &= _ahead(np.where(where, nats, 0.0), np.unique(_pair(run), return_inverse=True)[1])
    return where, gain(evidence, other, where=where)


def _ahead(nats: F8, of: I8) -> Mask:
    """[N] whether the sum over all tokens with the same number is `MARGIN` or more."""
    ahead: Mask = (np.bincount(of, weights=nats) >= MARGIN)[of]
    return ahead


def _pair(run: Run) -> I8:
    """[N] one number for each engine and weight version."""
    pair: I8 = (run.engine << 32) | run.weight_version
    return pair


def _explanation(evidence: Evidence, code: Code, where: Mask, gained: Gain, margin: float) -> Explanation:
    run = evidence.run
    pairs = np.unique(_pair(run)[where])
    of_these = np.isin(_pair(run), pairs)
    other, own = run.scores[_PASSES[code]].logprob(evidence.lens), run.trainer.logprob(evidence.lens)
    tested = np.isfinite(other) & of_these
    return Explanation(
        code,
        INFERENCE_PATH,
        margin=margin,
        share=gain(evidence, np.where(where, other, own), where=np.isfinite(other)).share,
        **place_under_lens(evidence, where),
        numbers={
            "d_abs": gained.d_abs_before,
            "d_abs_with": gained.d_abs_after,
            "tested": float(np.unique(run.rollout[tested]).size),
        },
        names=[f"version {pair & _VERSION} of engine {pair >> 32}" for pair in pairs.tolist()],
        cited=cited(evidence, "num-changed", "fingerprint-of-no-version", "in-flight-update"),
    )
