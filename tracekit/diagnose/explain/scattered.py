"""A mask whose ids form no ranges: what the engine divides by is smaller, so all values are larger than their replay.

Other weights or kernels leave values on either side of their replay: of 40 such faults on real engines none put more
than 91 % of the tokens beyond noise on one side. What truncation or penalties do is tried before.
"""

from __future__ import annotations

from math import log

import numpy as np

from tracekit.diagnose.data import SEMANTIC
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain import hidden
from tracekit.diagnose.explain.place import place_under_lens
from tracekit.diagnose.explanation import Explanation
from tracekit.diagnose.semantic import NEITHER

_BEYOND = 3.0  # deviations of clean noise
_LEAST_TOKENS = 50
_ONE_SIDED = 0.99
_MOST = log(2)  # nats, the median: an engine that bars more is broken in another way


def detect(evidence: Evidence) -> list[Explanation]:
    """Name a hidden mask where all values that are off are off to the side on which a mask puts them."""
    noise = evidence.judged
    off = noise.telling & (np.abs(noise.z) > _BEYOND)
    num, size = int(np.count_nonzero(off)), -noise.d[off]
    if evidence.semantic.kind != NEITHER or num < _LEAST_TOKENS or np.mean(size > 0) < _ONE_SIDED:
        return []
    if np.median(size) > _MOST:
        return []
    numbers = {"missing_mass": float(-np.expm1(-size).mean()), "num_tokens": float(num)}
    nan, place = float("nan"), place_under_lens(evidence, off)
    return [Explanation(hidden.CODE, SEMANTIC, margin=nan, share=nan, **place, numbers=numbers)]
