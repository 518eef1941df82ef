"""The residuals grow with the position, whatever the rollout: rotary embeddings, windows and the like differ.

By likelihood: residuals whose scale is c (p / P)^k, p the position and P the last, against those of one scale, and
against those that are clean up to some position and of one scale after it, as of a fault that is switched on there.
"""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import F8, I8, INFERENCE_PATH
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.cited import cited
from tracekit.diagnose.explain.place import place_of_onsets
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.semantic import MARGIN
from tracekit.diagnose.student import log_density

CODE: Code = "grows with position"

_POWERS = (0.5, 1.0, 2.0)
_SCALES = np.geomspace(1.0, 1e4, 81)
_STEPS = 24
_MOST_TOKENS = 4096
_LEAST_GROWTH = 2.0  # of the scale, from the first quarter of the positions to the last
_MOST_EXPLAINED = 0.5


def detect(evidence: Evidence) -> list[Explanation]:
    """Name the growth where it beats one scale, and a step, by `MARGIN` nats."""
    if not evidence.diverges or any(e.share != e.share or e.share > _MOST_EXPLAINED for e in evidence.found):
        return []
    use = np.flatnonzero(evidence.usable & (evidence.run.trainer.gain(evidence.lens) > 0))
    use = use[:: -(-use.size // _MOST_TOKENS) or 1]
    if not use.size:
        return []
    z, position = evidence.d[use] / evidence.judged.sigma[use], evidence.run.position[use]
    degrees = evidence.judged.floor.degrees
    relative = (position + 1) / (position.max() + 1)
    growing = max(_best(z, relative**power, degrees) for power in _POWERS)
    margin = growing - max(_best(z, np.ones_like(z), degrees), _step(z, position, degrees))
    growth = _growth(np.abs(z), position)
    if margin < MARGIN or growth < _LEAST_GROWTH:
        return []
    return [
        Explanation(
            CODE,
            INFERENCE_PATH,
            margin=margin,
            share=1.0,
            **place_of_onsets(evidence.rollouts),
            numbers={"growth": growth},
            cited=cited(evidence, "trainer-config-differs", "overridden-config"),
        )
    ]


def _best(z: F8, shape: F8, degrees: float) -> float:
    """Log-likelihood of residuals with scale c × shape, but no less than that of the noise, at the best c; nats."""
    scale = np.maximum(_SCALES[:, None] * shape, 1.0)
    return float((log_density(z / scale, degrees) - np.log(scale)).sum(axis=1).max())


def _step(z: F8, position: I8, degrees: float) -> float:
    starts = np.unique(np.quantile(position, np.linspace(0, 1, _STEPS, endpoint=False)).astype(np.int64))
    return max(_best(z, (position >= start).astype(float), degrees) for start in starts)


def _growth(sizes: F8, position: I8) -> float:
    """Median size in the last quarter of the tokens by position, over that in the first."""
    low, high = np.quantile(position, [0.25, 0.75])
    before = float(np.median(sizes[position <= low]))
    return float(np.median(sizes[position >= high])) / max(before, 1e-9)
