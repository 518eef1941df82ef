"""The engine's head works in bfloat16 while the trainer's is float32: rounded logits fit better."""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import INFERENCE_PATH
from tracekit.diagnose.density import Density
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.profile import Predicted, predict
from tracekit.diagnose.settings import F8, neutral
from tracekit.diagnose.student import fit_student
from tracekit.diagnose.trial import Trial, trial_of
from tracekit.scores import PROCESSED, RAW

CODE: Code = "bfloat16 head"
LEAST_NATS = 8.0
LEAST_SHARE = 0.25
PROVED = 0.3  # of the error of probed logits that a bfloat16 head leaves
_TAILS = (1.0, 2.0, 3.0, 5.0, 10.0, 30.0)
_SMALLEST_UNIT = 0.02


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the head where something is to be explained and rounded logits explain it, or its probe proves it."""
    modules = evidence.run.modules
    if modules is not None and modules.narrow_head < PROVED:
        nan, numbers = float("nan"), {"left": modules.narrow_head}
        return [Explanation(CODE, INFERENCE_PATH, margin=nan, share=nan, numbers=numbers, names=["lm_head"])]
    if not evidence.diverges:
        return []
    lens = RAW if evidence.lens == RAW else PROCESSED
    trial = trial_of(evidence.run, Density.of(evidence.noise[lens].floor))
    if trial is None:
        return []
    settings = neutral(trial.index.size) if lens == RAW else trial.settings
    exact, rounded = (predict(trial.profile, settings, low_head=low) for low in (False, True))
    nats = _likelihood(trial, rounded) - _likelihood(trial, exact)
    before, after = (trial.density.at(trial.recorded - told.logprob, told.gain) for told in (exact, rounded))
    perfect = float((trial.density.usual(exact.gain) - before).sum())
    share = float((after - before).sum()) / perfect if perfect > 0 else 0.0
    if nats < LEAST_NATS or share < LEAST_SHARE:
        return []
    moved = trial.index[after > before + 2.0]
    return [
        Explanation(
            CODE,
            INFERENCE_PATH,
            margin=nats,
            share=min(share, 1.0),
            **place_of(evidence, moved if moved.size else trial.index),
            numbers={
                "nats": nats,
                "d_abs_before": _mean(trial.recorded - exact.logprob),
                "d_abs_after": _mean(trial.recorded - rounded.logprob),
                "num_tokens": float(trial.index.size),
            },
        )
    ]


def _likelihood(trial: Trial, told: Predicted) -> float:
    """Of the residuals, scale and tail fitted to each hypothesis: a head adds noise of its own."""
    residual = trial.recorded - told.logprob
    use = np.isfinite(residual) & np.isfinite(told.gain)
    unit = np.hypot(told.gain[use], _SMALLEST_UNIT)
    return fit_student(residual[use], unit, tails=_TAILS, smallest=1e-5).log_likelihood


def _mean(residual: F8) -> float:
    return float(np.nanmean(np.abs(residual)))
