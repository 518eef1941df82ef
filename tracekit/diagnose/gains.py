"""How much of what is beyond noise other values explain, in nats and as a share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import F8, Mask
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.student import log_density


@dataclass(frozen=True)
class Gain:
    """What replaying with other values gains.

    Attributes:
        nats: log-likelihood over that of the values it is compared with.
        share: of what a perfect replay would gain, at most 1; NaN where there is nothing to gain.
        d_abs_before: mean |replayed − recorded| of the values it is compared with, nats.
        d_abs_after: the same of the other values.
        num_tokens: that were compared.
    """

    nats: float
    share: float
    d_abs_before: float
    d_abs_after: float
    num_tokens: int


def gain(evidence: Evidence, other: F8, *, over: F8 | None = None, where: Mask | None = None) -> Gain:
    """Compare other replayed values with the trainer's, under the noise of this run.

    Args:
        evidence: with the noise of every token.
        other: [N] nats; NaN where they say nothing.
        over: [N] nats, what they are compared with; without it the trainer's own under the evidence's lens.
        where: [N] which tokens; without it all that can tell.
    """
    noise, recorded = evidence.judged, evidence.run.rollout_logprob
    before = evidence.d if over is None else over - recorded
    after = other - recorded
    use = evidence.usable & np.isfinite(before) & np.isfinite(after)
    use &= True if where is None else where
    if not use.any():
        return Gain(0.0, float("nan"), float("nan"), float("nan"), 0)
    sigma, degrees = noise.sigma[use], noise.floor.degrees
    missing = -log_density(before[use] / sigma, degrees)
    gained = missing + log_density(after[use] / sigma, degrees)
    most = float(missing.sum())
    share = max(min(float(gained.sum()) / most, 1.0), 0.0) if most > 0 else float("nan")
    was, now = (float(np.abs(values[use]).mean()) for values in (before, after))
    return Gain(float(gained.sum()), share, was, now, int(use.sum()))


def share_of(evidence: Evidence, where: Mask) -> float:
    """Return the share of what a perfect replay would gain that lies in these tokens, [N], 0 to 1; NaN for nothing."""
    use = evidence.usable
    missing = -log_density(evidence.d[use] / evidence.judged.sigma[use], evidence.judged.floor.degrees)
    return float(missing[where[use]].sum() / missing.sum()) if missing.sum() > 0 else float("nan")
