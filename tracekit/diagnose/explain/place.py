"""Where an explanation begins: the first token, in the order in which they were sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from tracekit.diagnose.data import F8, I8, Mask, Run
from tracekit.diagnose.evidence import Evidence
from tracekit.diagnose.onset import Onset, RolloutOnsets, earliest, onset_at


class Place(TypedDict):
    """The fields of an `Explanation` that say where."""

    since: Onset | None
    since_rollout: int | None
    rollouts: list[int]


def place_of(evidence: Evidence, tokens: I8) -> Place:
    """Return where something is that concerns these tokens of the run, given by their indices."""
    replay = evidence.run.trainer.logprob(evidence.expect)
    return _place(evidence.run, tokens, replay, evidence.noise[evidence.expect].sigma)


def place_under_lens(evidence: Evidence, where: Mask, replay: F8 | None = None) -> Place:
    """Return where something is that concerns these tokens, [N], under the lens.

    Args:
        evidence: with the noise under the lens.
        where: [N] which tokens.
        replay: [N] nats that they are compared with; without it the trainer's own.
    """
    own = evidence.run.trainer.logprob(evidence.lens)
    return _place(evidence.run, np.flatnonzero(where), own if replay is None else replay, evidence.judged.sigma)


def place_of_onsets(rollouts: Sequence[RolloutOnsets]) -> Place:
    """Return where the earliest onset is, and which rollouts have one."""
    first = earliest(rollouts)
    return Place(
        since=None if first is None else rollouts[first].onset,
        since_rollout=first,
        rollouts=[i for i, rollout in enumerate(rollouts) if rollout.onset],
    )


def _place(run: Run, tokens: I8, replay: F8, sigma: F8) -> Place:
    if not tokens.size:
        return Place(since=None, since_rollout=None, rollouts=[])
    first = int(tokens[np.lexsort((tokens, run.engine_step[tokens]))[0]])
    return Place(
        since=onset_at(run, replay, sigma, first),
        since_rollout=int(run.rollout[first]),
        rollouts=[int(i) for i in np.unique(run.rollout[tokens])],
    )
