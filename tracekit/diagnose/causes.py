"""Everything that a verdict may name as a cause: a code, its layer, and what finds it. One row each.

A row needs its words in `tracekit.report.causes` and its line in docs/verdict.md; tests compare. What a detector wants
scored is a rung of `tracekit.replay.ladder`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tracekit.diagnose.data import INFERENCE_PATH, LAYERS, SEMANTIC, Layer
from tracekit.diagnose.evidence import Detector, Evidence
from tracekit.diagnose.explain import (
    beyond,
    biased,
    calibration,
    checkpoint,
    circumstance,
    first,
    fitted,
    foreign,
    head,
    hidden,
    identity,
    module,
    padded,
    position,
    reading,
    rounded,
    rounded_sampling,
    sentinels,
    stale,
    state,
    trainer_config,
    trainer_held,
    trainer_ids,
    trainer_values,
    transformed,
    values,
    weights,
    where,
)
from tracekit.diagnose.explanation import Code, Explanation


@dataclass(frozen=True)
class Cause:
    """One cause.

    Attributes:
        code: what explanations call it.
        layer: the layer of mismatch that it belongs to.
        detect: what finds it; one that finds several stands in the row of each.
    """

    code: Code
    layer: Layer
    detect: Detector


# lowest layer first: a detector sees what those before it found
CAUSES: tuple[Cause, ...] = (
    Cause(beyond.CODE, SEMANTIC, beyond.detect),
    Cause(rounded.CODE, SEMANTIC, rounded.detect),
    *(Cause(code, SEMANTIC, values.detect) for code in transformed.CODES),
    Cause(first.CODE, SEMANTIC, values.detect),
    Cause(hidden.CODE, SEMANTIC, values.detect),
    Cause(biased.CODE, SEMANTIC, values.detect),
    Cause(padded.CODE, SEMANTIC, values.detect),
    Cause(rounded_sampling.CODE, SEMANTIC, values.detect),
    *(Cause(code, SEMANTIC, values.detect) for code in fitted.CODES.values()),
    Cause(sentinels.CODE, SEMANTIC, sentinels.detect),
    Cause(reading.CODE, SEMANTIC, reading.detect),
    Cause(calibration.CODE, SEMANTIC, calibration.detect),
    *(Cause(code, SEMANTIC, trainer_ids.detect) for code in trainer_ids.CODES),
    *(Cause(code, SEMANTIC, trainer_held.detect) for code in trainer_held.CODES),
    Cause("trainer tokenizer differs", SEMANTIC, trainer_config.detect),
    *(Cause(code, SEMANTIC, trainer_values.detect) for code in trainer_values.CODES),
    Cause(head.CODE, INFERENCE_PATH, head.detect),
    Cause(identity.CODE, INFERENCE_PATH, identity.detect),
    *(Cause(code, INFERENCE_PATH, checkpoint.detect) for code in checkpoint.CODES),
    Cause(state.CODE, INFERENCE_PATH, state.detect),
    *(Cause(code, INFERENCE_PATH, weights.detect) for code in weights.CODES),
    Cause(stale.CODE, INFERENCE_PATH, stale.detect),
    Cause(foreign.CODE, INFERENCE_PATH, foreign.detect),
    Cause(position.CODE, INFERENCE_PATH, position.detect),
    *(Cause(code, INFERENCE_PATH, circumstance.detect) for code in circumstance.CODES),
    *(Cause(code, INFERENCE_PATH, where.detect) for code in where.CODES),
    Cause(module.CODE, INFERENCE_PATH, module.detect),
    *(Cause(code, INFERENCE_PATH, trainer_values.detect) for code in trainer_values.CODES_ON_PATH),
    Cause("trainer config differs", INFERENCE_PATH, trainer_config.detect),
)


def explain(evidence: Evidence) -> list[Explanation]:
    """Return what explains a run: the lowest layer first, in each what is proved, then what explains most.

    What says where and not why has a large share by what it is: it comes behind all that says why.
    """
    found: list[Explanation] = []
    for detect in dict.fromkeys(cause.detect for cause in CAUSES):
        found += detect(replace(evidence, found=tuple(found)))
    return sorted(found, key=_rank)


_PLACE: dict[str, int] = {cause.code: place for place, cause in enumerate(CAUSES)}


def _rank(explanation: Explanation) -> tuple[int, bool, bool, float, float, int]:
    proved = explanation.margin != explanation.margin
    share = 0.0 if explanation.share != explanation.share else explanation.share
    margin = 0.0 if proved else explanation.margin
    says_where, place = explanation.code in where.CODES, _PLACE[explanation.code]
    return LAYERS.index(explanation.layer), not proved, says_where, -share, -margin, place
