"""Which rollouts a replay scores where its time is bounded."""

from __future__ import annotations

import time
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from tracekit.diagnose.result import Sample
from tracekit.replay.rollouts import Rollout, Rollouts
from tracekit.replay.sampling import spread
from tracekit.scoring.spans import whole

if TYPE_CHECKING:
    from tracekit.replay.scorers import ScorerLike

_TIMED = 1024
PASSES = 2.5  # what the whole verdict costs at most, in trainer's passes


def within(rollouts: Rollouts, budget_secs: float, position_secs: float, started: float) -> Rollouts:
    """Return the rollouts that can be scored in time: whole groups of an equal prompt, spread over versions and steps.

    No machine takes the same time twice: how many groups there are is rounded down to 1, 2, 3, 4, 6, 8, 12…, so
    that the next run, or one that goes on after Ctrl-C, nearly always scores the same ones.

    Args:
        rollouts: all of them.
        budget_secs: how long the replay may take, about, from `started` on. Where no group fits, a part of one is
            scored, of one rollout at least.
        position_secs: that one position of a pass takes.
        started: on the monotonic clock.
    """
    room = (budget_secs - (time.monotonic() - started)) / (PASSES * position_secs)
    everyone = rollouts.rollouts
    groups = _groups(everyone)
    order = spread(len(groups))
    spent = np.cumsum([_cost(groups[i]) for i in order])
    count = int(np.count_nonzero(spent <= room))
    count = count if count == len(groups) else _rounded(count)
    taken = [groups[i] for i in order[:count]] or [_part(groups[order[0]], room)]
    chosen = {id(rollout) for group in taken for rollout in group}
    left = [rollout for rollout in everyone if id(rollout) in chosen]
    sample = Sample(budget_secs, len(everyone), sum(r.num_tokens for r in everyone))
    return replace(rollouts, rollouts=left, sample=sample)


def position_secs(scorer: ScorerLike, rollouts: Seq[Rollout], max_batch_tokens: int) -> float:
    """Return how long one position takes, of the rollouts that are scored whatever the time: about a thousand of them.

    Args:
        scorer: the trainer's, warm.
        rollouts: all of them.
        max_batch_tokens: the batch shape; of a longer rollout the beginning is scored.
    """
    group = _groups(rollouts)[0]
    cost = np.cumsum([r.num_tokens for r in group]) + group[0].num_prompt_tokens
    spans = [whole(r.sequence) for r in group[: int(np.searchsorted(cost, _TIMED)) + 1]]
    spans = [replace(span, stop=min(span.stop, max_batch_tokens)) for span in spans]
    begin = time.perf_counter()
    scorer.score(spans, max_batch_tokens=max_batch_tokens)
    num = sum(span.stop for span in spans) - (len(spans) - 1) * min(group[0].num_prompt_tokens, max_batch_tokens)
    return (time.perf_counter() - begin) / max(num, 1)


def _groups(rollouts: Seq[Rollout]) -> list[list[Rollout]]:
    """Rollouts of an equal prompt, in the order of their versions and steps."""
    by_prompt = sorted(rollouts, key=_prompt)
    return sorted((list(group) for _, group in groupby(by_prompt, key=_prompt)), key=_when)


def _prompt(rollout: Rollout) -> bytes:
    return rollout.sequence.prompt_token_ids.tobytes()


def _when(group: list[Rollout]) -> tuple[int, int, int]:
    first = group[0]
    return int(first.weight_version[0]), first.sequence.engine, int(first.engine_step[0])


def _part(group: list[Rollout], room: float) -> list[Rollout]:
    """The first rollouts of a group that does not fit."""
    spent = group[0].num_prompt_tokens + np.cumsum([r.num_tokens for r in group])
    return group[: max(_rounded(int(np.count_nonzero(spent <= room))), 1)]


def _rounded(count: int) -> int:
    if not count:
        return 0
    power = 1 << count.bit_length() - 1
    return power * 3 // 2 if 2 * count >= 3 * power else power


def _cost(group: list[Rollout]) -> int:
    return group[0].num_prompt_tokens + sum(r.num_tokens for r in group)
