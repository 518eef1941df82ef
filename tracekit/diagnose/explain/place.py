"""Where an explanation begins: the first token, in the order in which they were sampled."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from tracekit.diagnose.data import I8
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.onset import Onset, onset_at


class Place(TypedDict):
    """The fields of an `Explanation` that say where."""

    since: Onset | None
    since_rollout: int | None
    rollouts: list[int]


def place_of(evidence: Evidence, tokens: I8) -> Place:
    """Return where something is that concerns these tokens of the run, given by their indices."""
    run, judged = evidence.run, evidence.noise[evidence.expect]
    if not tokens.size:
        return Place(since=None, since_rollout=None, rollouts=[])
    first = int(tokens[np.lexsort((tokens, run.engine_step[tokens]))[0]])
    return Place(
        since=onset_at(run, run.trainer.logprob(evidence.expect), judged.sigma, first),
        since_rollout=int(run.rollout[first]),
        rollouts=[int(i) for i in np.unique(run.rollout[tokens])],
    )
