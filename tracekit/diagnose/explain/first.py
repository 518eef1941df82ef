"""The recorded value is that of the most likely token, not of the sampled one: the first entry of a dict, for one."""

from __future__ import annotations

from tracekit.diagnose.data import SEMANTIC
from tracekit.diagnose.density import Density
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.part import best_part
from tracekit.diagnose.semantic import NEITHER
from tracekit.diagnose.settings import neutral
from tracekit.diagnose.trial import trial_of
from tracekit.scores import PROCESSED, RAW

CODE: Code = "most likely token's value"
LEAST_NATS = 12.0
LEAST_SHARE = 0.4


def detect(evidence: Evidence) -> list[Explanation]:
    """Compare the values with those of the most likely tokens."""
    if evidence.semantic.kind != NEITHER and not evidence.diverges:
        return []
    run, found = evidence.run, []
    for lens in (RAW, PROCESSED):
        trial = trial_of(run, Density.of(evidence.noise[lens].floor))
        if trial is None:
            return []
        settings = neutral(trial.index.size) if lens == RAW else trial.settings
        told = trial.predict(settings)
        before = trial.weigh_told(told)
        after = trial.density.at(trial.recorded - told.first, told.gain)
        part = best_part(after - before, run.engine_step[trial.index], run.rollout[trial.index])
        perfect = float((trial.density.usual(told.gain) - before).sum())
        share = part.nats / perfect if perfect > 0 else 0.0
        if part.nats < LEAST_NATS or share < LEAST_SHARE:
            continue
        other = part.which & (told.first > told.logprob + 1e-6)
        found.append(
            Explanation(
                CODE,
                SEMANTIC,
                margin=part.nats,
                share=min(share, 1.0),
                **place_of(evidence, trial.index[other]),
                numbers={"nats": part.nats, "count": float(other.sum())},
                names=[lens],
            )
        )
    return sorted(found, key=lambda explanation: -explanation.numbers["nats"])[:1]
