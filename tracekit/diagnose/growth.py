"""How clean noise grows with the context: as a power of the position, fitted to what another precision does.

Rounding errors of attention add up over what a token sees: clean runs of 512 tokens had three times the noise at their
end that they had at their beginning, in the control as in the record.
"""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import F8, OTHER_PRECISION, Mask, Run
from tracekit.diagnose.residual import residuals
from tracekit.scores import RAW

_CLEAR = 3.0  # standard errors: a growth that the control does not show is none


def clean_growth(run: Run, telling: Mask) -> F8:
    """Return the size of clean noise at every token, [N], up to a factor; 1 where the control shows no growth.

    Args:
        run: the tokens.
        telling: [N] tokens that can tell.
    """
    if OTHER_PRECISION not in run.scores:
        return np.ones(run.position.size)
    control = residuals(run, run.trainer, RAW, run.scores[OTHER_PRECISION].raw_logprob, 1.0).smooth
    position = np.log(np.maximum(run.position, 1).astype(np.float64))
    use = telling & np.isfinite(control) & (control != 0)
    x, y = position[use], np.log(np.abs(control[use]))
    spread = float(((x - x.mean()) ** 2).sum()) if x.size > 2 else 0.0
    if not spread:
        return np.ones_like(position)
    power = float(((x - x.mean()) * y).sum()) / spread
    left = y - y.mean() - power * (x - x.mean())
    error = float(np.sqrt((left**2).sum() / (x.size - 2) / spread))
    growth: F8 = np.exp(power * position) if power > _CLEAR * error else np.ones_like(position)
    return growth
