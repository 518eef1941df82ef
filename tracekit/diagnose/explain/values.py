"""What the recorded values are where no reading explains them: the rivals are weighed against each other here."""

from __future__ import annotations

from dataclasses import replace

from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain import (
    biased,
    first,
    fitted,
    hidden,
    padded,
    rounded_sampling,
    scattered,
    transformed,
)
from tracekit.diagnose.explanation import Explanation
from tracekit.diagnose.semantic import MARGIN

ENOUGH = 0.95  # of a perfect replay: what explains as much needs no rival that takes longer to try


def detect(evidence: Evidence) -> list[Explanation]:
    """Return what explains most; what is as good stands among its alternatives."""
    if sum(e.share for e in evidence.found) >= ENOUGH:
        return []
    found: list[list[Explanation]] = []
    for detector in (
        padded.detect,
        rounded_sampling.detect,
        transformed.detect,
        first.detect,
        hidden.detect,
        biased.detect,
        fitted.detect,
    ):
        explanations = detector(evidence)
        if explanations:
            found.append(explanations)
        if explanations and sum(e.share for e in explanations) >= ENOUGH:
            break
    found.sort(key=lambda explanations: -_nats(explanations))
    if not found:
        return scattered.detect(evidence)
    if len(found) < 2:
        return found[0]
    (best, second), ahead = found[:2], _nats(found[0]) - _nats(found[1])
    if ahead < MARGIN:
        alternatives = [explanation.code for explanation in second]
        return [replace(e, alternatives=[*e.alternatives, *alternatives]) for e in best]
    return [replace(explanation, margin=min(explanation.margin, ahead)) for explanation in best]


def _nats(explanations: list[Explanation]) -> float:
    return sum(explanation.numbers["nats"] for explanation in explanations)
