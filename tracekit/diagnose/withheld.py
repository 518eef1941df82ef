"""What a verdict cannot know, and why: where there is any of it, a run without divergence is not a pass."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tracekit.diagnose.data import Run
from tracekit.diagnose.facts import Facts
from tracekit.diagnose.noise import TokenNoise
from tracekit.diagnose.remarks import Remark
from tracekit.diagnose.semantic import UNDECIDED, Semantic, differ


def withheld(run: Run, semantic: Semantic, noise: Mapping[str, TokenNoise], facts: Facts) -> list[Remark]:
    """Say what was not judged.

    Args:
        run: the tokens.
        semantic: what the recorded values are.
        noise: of every token, under "raw" and under "processed".
        facts: what the trace says beside its tokens.
    """
    found = []
    for skipped in facts.skipped:
        if skipped.because:
            found.append(Remark("not judged", {"count": skipped.count}, [skipped.because]))
    spoilt = np.flatnonzero(~run.valid)
    if spoilt.size:
        request = run.rollouts[int(run.rollout[spoilt[0]])].request
        where = {"position": int(run.position[spoilt[0]]), "request": request}
        found.append(Remark("not finite", {"count": spoilt.size, **where}))
    if semantic.kind == UNDECIDED and differ(run, semantic.closest, semantic.runner_up, noise):
        found.append(Remark("meaning not known", {"nats": semantic.margin}, [semantic.closest, semantic.runner_up]))
    return found
