"""`--budget`: which rollouts are scored in so much time."""

import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from tracekit.replay.budget import PASSES, position_secs, within
from tracekit.replay.rollouts import Rollout, Rollouts
from tracekit.scoring.params import Params
from tracekit.scoring.spans import Span
from tracekit.scoring.types import Sequence

GROUPS, MEMBERS, PROMPT, LENGTH = 100, 4, 20, 30
COST = PROMPT + MEMBERS * LENGTH


def everyone() -> Rollouts:
    found = []
    for group in range(GROUPS):
        prompt = np.full(PROMPT, group + 3, "u4")
        for member in range(MEMBERS):
            sequence = Sequence(0, group * MEMBERS + member, prompt, np.full(LENGTH, 5, "u4"), Params())
            steps = group * LENGTH + np.arange(LENGTH)
            ints = np.zeros(LENGTH, "i8")
            found.append(Rollout(sequence, "r", np.zeros(LENGTH), ints + group // 50, steps, ints))
    return Rollouts(found, [], 0, 0, (), (), {}, None, [])


def groups_in(budget_secs: float, position_secs: float = 0.001) -> list[int]:
    found = within(everyone(), budget_secs, position_secs, time.monotonic())
    assert found.sample is not None and (found.sample.num_rollouts, found.sample.num_tokens) == (400, 400 * LENGTH)
    groups = [rollout.sequence.request // MEMBERS for rollout in found.rollouts]
    assert groups == sorted(groups) and all(groups.count(group) == MEMBERS for group in groups)
    return sorted(set(groups))


@pytest.mark.parametrize(("fit", "taken"), [(1, 1), (5, 4), (13, 12), (99, 96), (100, 100), (1000, 100)])
def test_as_many_whole_groups_as_fit_in_coarse_steps(fit: int, taken: int) -> None:
    groups = groups_in((fit + 0.5) * COST * PASSES * 0.001)
    assert len(groups) == taken
    if taken > 3:  # spread over the steps, and so over the versions
        assert np.diff(groups).max() <= 2 * GROUPS / taken + 28 and groups[0] < 50 <= groups[-1]


def test_another_mood_of_the_machine_rarely_changes_the_sample_and_a_smaller_one_is_part_of_a_larger() -> None:
    budget = 14 * COST * PASSES * 0.001
    assert groups_in(budget, 0.00096) == groups_in(budget) == groups_in(budget, 0.00115)
    assert set(groups_in(budget / 2)) < set(groups_in(budget))


def test_what_was_spent_before_is_not_spent_again() -> None:
    budget = 14 * COST * PASSES * 0.001
    assert len(within(everyone(), budget, 0.001, time.monotonic() - budget).rollouts) == 1


@pytest.mark.parametrize(("fit", "taken"), [(0, 1), (1, 1), (3, 3)])
def test_where_no_group_fits_a_part_of_one_is_scored(fit: int, taken: int) -> None:
    positions = PROMPT + fit * LENGTH + 1
    found = within(everyone(), positions * PASSES * 0.001, 0.001, time.monotonic()).rollouts
    assert [rollout.sequence.request for rollout in found] == list(range(taken))


def test_a_position_is_timed_on_whole_rollouts_of_a_thousand_positions_at_most() -> None:
    ran = []

    def score(spans: list[Span], *, max_batch_tokens: int) -> None:
        ran.extend((span.sequence.request, span.stop) for span in spans)
        time.sleep(0.02)

    rollouts = everyone().rollouts
    secs = position_secs(SimpleNamespace(score=score), rollouts, 2048)
    assert ran == [(member, PROMPT + LENGTH - 1) for member in range(MEMBERS)]  # not the first tokens alone
    assert 0.02 <= secs * (COST - MEMBERS) < 2
    long = [replace(r, sequence=replace(r.sequence, token_ids=np.full(3000, 5, "u4"))) for r in rollouts]
    ran.clear()
    position_secs(SimpleNamespace(score=score), long, 2048)
    assert ran == [(0, 2048)]
