"""The engine's head works in bfloat16 while the trainer's is float32: rounded logits fit better.

Rounded logits of the profile raise the suspicion; a pass with such a head, which rounds what goes into it, too, is the
proof, and takes their place where it was run.
"""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import F8, INFERENCE_PATH, NARROW_HEAD
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import Place, place_of, place_under_lens
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.gains import gain
from tracekit.diagnose.profile import Predicted, predict
from tracekit.diagnose.student import fit_student
from tracekit.diagnose.trial import Trial
from tracekit.scores import PROCESSED, RAW

CODE: Code = "bfloat16 head"
LEAST_NATS = 8.0
LEAST_SHARE = 0.25
PROVED = 0.3  # of the error of probed logits that a bfloat16 head leaves
ALONE_NATS = 25.0  # for rounded logits without the proof, which have to halve the bulk of what is off, too
EXACT = 0.1  # of that bulk, left by rounded logits: proof enough that what makes them is not rounded
_TAILS = (1.0, 2.0, 3.0, 5.0, 10.0, 30.0)
_SMALLEST_UNIT = 0.02


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the head where something is to be explained and rounded logits explain it, or its probe proves it."""
    modules, scored = evidence.run.modules, NARROW_HEAD in evidence.run.scores
    if scored and evidence.diverges and (found := _proved(evidence)):
        return found
    if modules is not None and modules.narrow_head < PROVED:
        nan, numbers = float("nan"), {"left": modules.narrow_head}
        return [Explanation(CODE, INFERENCE_PATH, margin=nan, share=nan, numbers=numbers, names=["lm_head"])]
    if not evidence.diverges:
        return []
    trial = evidence.trial(RAW if evidence.lens == RAW else PROCESSED)
    if trial is None:
        return []
    exact, rounded = (predict(trial.profile, trial.settings, low_head=low) for low in (False, True))
    nats = _likelihood(trial, rounded) - _likelihood(trial, exact)
    was, now = (trial.recorded - told.logprob for told in (exact, rounded))
    left = np.nanmedian(np.abs(now)) / np.nanmedian(np.abs(was))
    if nats < ALONE_NATS or left > (EXACT if scored else 0.5):
        return []
    before, after = (trial.density.at(residual, told.gain) for residual, told in ((was, exact), (now, rounded)))
    perfect = float((trial.density.usual(exact.gain) - before).sum())
    share = float((after - before).sum()) / perfect if perfect > 0 else 0.0
    moved = trial.index[after > before + 2.0]
    where = place_of(evidence, moved if moved.size else trial.index)
    return [_explanation(nats, min(max(share, 0.0), 1.0), where, was, now)]


def _proved(evidence: Evidence) -> list[Explanation]:
    run, lens = evidence.run, evidence.lens
    narrow = run.scores[NARROW_HEAD].logprob(lens)
    gained = gain(evidence, narrow)
    if gained.nats < LEAST_NATS or not gained.share >= LEAST_SHARE:
        return []
    own = run.trainer.logprob(lens)
    moved = np.isfinite(narrow) & (np.abs(narrow - own) > evidence.judged.sigma)
    was, now = (np.where(np.isfinite(narrow), values - run.rollout_logprob, np.nan) for values in (own, narrow))
    return [_explanation(gained.nats, gained.share, place_under_lens(evidence, moved), was, now)]


def _explanation(nats: float, share: float, where: Place, was: F8, now: F8) -> Explanation:
    sizes = {"d_abs_before": _mean(was), "d_abs_after": _mean(now)}
    numbers = {"nats": nats, **sizes, "num_tokens": float(np.count_nonzero(np.isfinite(now)))}
    return Explanation(
        CODE, INFERENCE_PATH, margin=nats, share=share, **where, numbers=numbers, names=["lm_head", "bfloat16"]
    )


def _likelihood(trial: Trial, told: Predicted) -> float:
    """Of the residuals, scale and tail fitted to each hypothesis: a head adds noise of its own."""
    residual = trial.recorded - told.logprob
    use = np.isfinite(residual) & np.isfinite(told.gain)
    unit = np.hypot(told.gain[use], _SMALLEST_UNIT)
    return fit_student(residual[use], unit, tails=_TAILS, smallest=1e-5).log_likelihood


def _mean(residual: F8) -> float:
    return float(np.nanmean(np.abs(residual)))
