"""The sampler worked with its parameters rounded to bfloat16: 0.69921875 for 0.7."""

from __future__ import annotations

import numpy as np

from tracekit.diagnose.data import ROUNDED_SAMPLING, SEMANTIC
from tracekit.diagnose.density import Density
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.explain.place import place_of
from tracekit.diagnose.explanation import Code, Explanation
from tracekit.diagnose.profile import to_bfloat16
from tracekit.diagnose.settings import NEUTRAL
from tracekit.diagnose.trial import attempt
from tracekit.scores import PROCESSED

CODE: Code = "rounded sampling values"
LEAST_NATS = 12.0
LEAST_SHARE = 0.25


def detect(evidence: Evidence) -> list[Explanation]:
    """Compare the values with those of the rounded parameters, which have a pass of their own."""
    run = evidence.run
    if not evidence.asks or ROUNDED_SAMPLING not in run.scores:
        return []
    told, own = run.scores[ROUNDED_SAMPLING], run.trainer
    values, exact = told.logprob(PROCESSED), own.logprob(PROCESSED)
    use = np.flatnonzero(run.valid & ~evidence.tried.sentinels & np.isfinite(values) & np.isfinite(exact))
    density = Density.of(evidence.noise[PROCESSED].floor)
    before, after = (
        density.at((run.rollout_logprob - scored.logprob(PROCESSED))[use], scored.gain(PROCESSED)[use])
        for scored in (own, told)
    )
    tried = attempt(after, before, density.usual(own.gain(PROCESSED)[use]), run.engine_step[use], run.rollout[use])
    if not tried.enough(LEAST_NATS, LEAST_SHARE):
        return []
    inside = use[tried.part.which]
    moved = inside[np.abs(values - exact)[inside] > evidence.noise[PROCESSED].sigma[inside]]
    sizes = [float(np.abs((run.rollout_logprob - other)[inside]).mean()) for other in (exact, values)]
    return [
        Explanation(
            CODE,
            SEMANTIC,
            margin=tried.part.nats,
            share=tried.share,
            **place_of(evidence, moved if moved.size else inside),
            numbers={"nats": tried.part.nats, "d_abs_before": sizes[0], "d_abs_after": sizes[1]},
            names=_changed(evidence),
        )
    ]


def _changed(evidence: Evidence) -> list[str]:
    """The parameters that rounding moves, with what it makes of them."""
    settings, names = evidence.run.settings, []
    for name in NEUTRAL if settings is not None else ():
        for value in np.unique(getattr(settings, name)).tolist():
            rounded = float(to_bfloat16(np.array([value]))[0])
            if rounded != value:
                names.append(f"{name} {value:.6g} as {rounded:.9g}")
    return names
