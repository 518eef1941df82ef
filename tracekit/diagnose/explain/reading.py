"""The recorded values are another reading of the model's logits than the trainer expects."""

from __future__ import annotations

from math import sqrt

from tracekit.diagnose.data import SEMANTIC
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of_onsets
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.gains import gain
from tracekit.diagnose.onset import find_onsets
from tracekit.diagnose.readings import predicted
from tracekit.diagnose.semantic import MARGIN, advantage, differ

CODE: Code = "other reading"
ENOUGH = 0.5  # of a perfect replay
_BY_CHANCE = 2.0  # times the root of the tokens, nats: by so much one of two readings wins that explain nothing


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the reading that fits best where it is not the expected one and gives other numbers."""
    run, semantic, expect = evidence.run, evidence.semantic, evidence.expect
    if sum(e.share for e in evidence.found if e.share == e.share) >= ENOUGH:
        return []  # values that are something else altogether are always closer to one reading than to another
    ahead = advantage(semantic, expect)
    least = max(MARGIN, _BY_CHANCE * sqrt(semantic.num_tokens) if semantic.excess > 1 else 0.0)
    if ahead < least or not (semantic.lens == expect or differ(run, semantic.lens, expect, dict(evidence.noise))):
        return []
    rollouts = find_onsets(run, run.trainer.logprob(expect), evidence.noise[expect])
    return [
        Explanation(
            CODE,
            SEMANTIC,
            margin=semantic.margin,
            share=gain(evidence, predicted(run, semantic.closest), over=run.trainer.logprob(expect)).share,
            **place_of_onsets(rollouts),
            numbers={"nats": ahead},
            names=[semantic.closest, expect],
        )
    ]
