"""How large residuals are under a circumstance: one scale for all tokens, or one for some and one for the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, I8, Mask, Run
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.student import log_density

_SCALES = np.geomspace(1.0, 1e4, 81)
_EXPLAINED = 0.5
MOST_EDGES = 64  # places at which a change is looked for
LEAST_SCALE = 3.0  # of the tokens under a circumstance, in deviations of clean noise
LEAST_RATIO = 2.0  # of their scale to that of the others


@dataclass(frozen=True)
class Telling:
    """Tokens that can tell where a run leaves its replay, n of them.

    Attributes:
        index: [n] into the run's tokens.
        z: [n] residuals in deviations of clean noise.
        degrees: of freedom of their tail.
    """

    index: I8
    z: F8
    degrees: float

    def one(self, shape: F8 | None = None) -> float:
        """Log-likelihood of residuals with scale c × shape, but no less than that of the noise, at the best c; nats."""
        return _best(self.z, np.ones_like(self.z) if shape is None else shape, self.degrees)[0]

    def two(self, inside: Mask) -> tuple[float, float, float]:
        """Log-likelihood with a scale inside and one outside, and the two scales.

        Args:
            inside: [n]
        """
        within, a = _best(self.z[inside], np.ones(int(inside.sum())), self.degrees)
        without, b = _best(self.z[~inside], np.ones(int((~inside).sum())), self.degrees)
        return within + without, a, b

    def apart(self, inside: Mask) -> float:
        """By how many nats a scale for some tokens, [n], beats one for all; 0 where theirs is not much larger."""
        if not 0 < inside.sum() < inside.size:
            return 0.0
        both, scale, rest = self.two(inside)
        return both - self.one() if scale >= max(LEAST_SCALE, LEAST_RATIO * rest) else 0.0


def telling(evidence: Evidence, most: int) -> Telling | None:
    """Return what can tell, at most so many tokens; None where the run does not diverge, or another cause explains it.

    Args:
        evidence: with what was found before.
        most: tokens.
    """
    if not evidence.diverges or any(e.share != e.share or e.share > _EXPLAINED for e in evidence.found):
        return None
    use = np.flatnonzero(evidence.usable & (evidence.run.trainer.gain(evidence.lens) > 0))
    use = use[:: -(-use.size // most) or 1]
    if not use.size:
        return None
    return Telling(use, evidence.d[use] / evidence.judged.sigma[use], evidence.judged.floor.degrees)


def _best(z: F8, shape: F8, degrees: float) -> tuple[float, float]:
    scale = np.maximum(_SCALES[:, None] * shape, 1.0)
    found = (log_density(z / scale, degrees) - np.log(scale)).sum(axis=1)
    best = int(found.argmax())
    return float(found[best]), float(_SCALES[best])


def changes_in_time(run: Run, tokens: Telling) -> Iterator[Mask]:
    """Yield the tokens, [n], before and after each engine step, and each output index."""
    for values in (run.engine_step[tokens.index], run.output_index[tokens.index]):
        for edge in edges(values):
            yield values >= edge
            yield values < edge


def edges(values: I8) -> list[int]:
    """Return the values at which a change may lie: all that occur but the first, or some of them."""
    every = np.unique(values)[1:]
    return [int(v) for v in every[:: -(-every.size // MOST_EDGES) or 1]]
