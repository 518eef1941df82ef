"""What casting the stored weights to the engine's dtype does to the logprobs, where a folder holds wider ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracekit.diagnose.data import MASTERS, OTHER_PRECISION, Run


@dataclass(frozen=True)
class Masters:
    """Stored weights against what the engine received of them, both in a float32 body.

    Attributes:
        num_tokens: that both scored.
        d_abs_mean: mean |stored − cast|, nats.
        d_abs_max: the largest, nats.
        ratio_mean: mean e^(stored − cast).
    """

    num_tokens: int
    d_abs_mean: float
    d_abs_max: float
    ratio_mean: float


def masters_factor(run: Run, lens: str) -> Masters | None:
    """Return the factor under "raw" or "processed"; None where nothing was cast, or no token was scored by both."""
    if MASTERS not in run.scores:
        return None
    cast = run.scores[OTHER_PRECISION] if run.noise_dtype == "float32" else run.trainer
    d = run.scores[MASTERS].logprob(lens) - cast.logprob(lens)
    d = d[np.isfinite(d)]
    if not d.size:
        return None
    size = np.abs(d)
    return Masters(int(d.size), float(size.mean()), float(size.max()), float(np.exp(d).mean()))
