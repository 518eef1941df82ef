"""Agreeing but wrong: the values agree with the replay, and yet the tokens were drawn from another distribution.

Two tests on the profiled tokens, both exact in their false alarms but for noise: the sum of logprob + entropy is a
martingale (z of it is standard normal), and the probability of what is likelier than the token, plus a random share of
its own, is uniform; tokens that a profile does not keep one by one count as one (Kolmogorov and Smirnov; randomised as
in Smith, "Diagnostic checks of non-standard time series models", Journal of Forecasting 1985).
"""

from __future__ import annotations

from math import erfc, exp, sqrt

import numpy as np

from tracekit.diagnose.data import SEMANTIC
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.profile import spread
from tracekit.diagnose.semantic import NEITHER
from tracekit.diagnose.settings import F8, Settings
from tracekit.diagnose.trial import Trial, choices
from tracekit.scores import PROCESSED

CODE: Code = "drawn otherwise"
FALSE_ALARM = 1e-5  # for each of the two tests
LEAST_TOKENS = 100  # with fewer the sum is not yet normal
_TEMPERATURES = np.geomspace(0.2, 3.0, 55)


def detect(evidence: Evidence) -> list[Explanation]:
    """Test whether tokens were drawn as their requests say, where the recorded values agree with the replay."""
    if evidence.diverges or evidence.semantic.kind == NEITHER or evidence.found:
        return []
    trial = evidence.trial(PROCESSED)
    if trial is None or trial.index.size < LEAST_TOKENS:
        return []
    scored = trial.settings  # also where raw values agree, which tell nothing of how tokens were drawn
    tested = calibrate(trial, scored)
    if tested is None or min(tested["chance_of_z"], tested["chance_of_ranks"]) > FALSE_ALARM:
        return []
    likelihoods = [choices(trial, scored.but("temperature", float(t))) for t in _TEMPERATURES]
    near = _TEMPERATURES[np.array(likelihoods) >= max(likelihoods) - 1.92]
    fitted = float(_TEMPERATURES[int(np.argmax(likelihoods))])
    margin = float(max(likelihoods) - choices(trial, scored))
    return [
        Explanation(
            CODE,
            SEMANTIC,
            margin=margin,
            share=float("nan"),
            **place_of(evidence, trial.index),
            numbers={
                **tested,
                "scored_temperature": float(np.median(scored.temperature)),
                "fitted": fitted,
                "low": float(near[0]),
                "high": float(near[-1]),
                "num_tokens": float(trial.index.size),
            },
            names=[evidence.lens],
        )
    ]


def calibrate(trial: Trial, scored: Settings) -> dict[str, float] | None:
    """Return z and the chance of it, and of the ranks, if tokens were drawn as scored; None where nothing can tell."""
    told, drawn = trial.predict(scored), spread(trial.profile, scored)
    use = np.isfinite(drawn.entropy) & (drawn.variance > 1e-8)
    if np.count_nonzero(use) < LEAST_TOKENS:
        return None
    z = float((told.logprob + drawn.entropy)[use].sum() / sqrt(float(drawn.variance[use].sum())))
    random = np.random.default_rng(0).random(trial.index.size)  # the same for every run: a verdict can be repeated
    place = (drawn.before + random * drawn.own)[use & told.inside]
    return {"z": z, "chance_of_z": erfc(abs(z) / sqrt(2)), "chance_of_ranks": _kolmogorov(np.clip(place, 0.0, 1.0))}


def _kolmogorov(values: F8) -> float:
    """Chance that so many uniform values lie at least as far from uniform (Stephens' approximation)."""
    n = values.size
    ordered = np.sort(values)
    steps = np.arange(n + 1) / n
    distance = max(float((steps[1:] - ordered).max()), float((ordered - steps[:-1]).max()))
    x = (sqrt(n) + 0.12 + 0.11 / sqrt(n)) * distance
    terms = (2 * (-1) ** (k - 1) * exp(-2 * k * k * x * x) for k in range(1, 50))
    return float(min(max(sum(terms), 0.0), 1.0)) if x > 0.2 else 1.0
