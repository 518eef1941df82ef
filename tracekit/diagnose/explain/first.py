"""The recorded value is that of the most likely token, not of the sampled one: the first entry of a dict, for one."""

from __future__ import annotations

from tracekit.diagnose.data import SEMANTIC
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.scores import PROCESSED, RAW

CODE: Code = "most likely token's value"
LEAST_NATS = 12.0
LEAST_SHARE = 0.4


def detect(evidence: Evidence) -> list[Explanation]:
    """Compare the values with those of the most likely tokens."""
    found: list[Explanation] = []
    for lens in (RAW, PROCESSED):
        trial = evidence.trial(lens) if evidence.asks else None
        if trial is None:
            return []
        told = trial.predict(trial.settings)
        before = trial.weigh_told(told)
        after = trial.density.at(trial.recorded - told.first, told.gain)
        tried = trial.attempt(after, before, trial.density.usual(told.gain))
        if not tried.enough(LEAST_NATS, LEAST_SHARE):
            continue
        part = tried.part
        other = part.which & (told.first > told.logprob + 1e-6)
        found.append(
            Explanation(
                CODE,
                SEMANTIC,
                margin=part.nats,
                share=tried.share,
                **place_of(evidence, trial.index[other]),
                numbers={"nats": part.nats, "count": float(other.sum())},
                names=[lens],
            )
        )
    return sorted(found, key=lambda explanation: -explanation.numbers["nats"])[:1]
