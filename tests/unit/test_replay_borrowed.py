"""Whose KV a request began on, where no request of the same tokens had computed it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa

from tracekit.replay.borrowed import borrowed_prompts, starts_of
from tracekit.replay.ladder import Pass
from tracekit.replay.planning import plan_further_units
from tracekit.replay.rollouts import Rollout
from tracekit.replay.scorers import Model
from tracekit.scoring.params import Params
from tracekit.scoring.types import Sequence

A, B = [1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]


def rollout(request: int, prompt: list[int]) -> Rollout:
    two = np.zeros(2, np.int64)
    sequence = Sequence(0, request, np.array(prompt, np.uint32), np.array([20, 21], np.uint32), Params())
    return Rollout(sequence, f"r-{request}", two.astype(float), two, two, two)


def trace_of(*prompts: list[int]) -> Any:
    rows = [{"engine": 0, "request": i, "prompt_token_ids": ids} for i, ids in enumerate(prompts)]
    return SimpleNamespace(table=lambda name: pa.Table.from_pylist(rows))


def test_a_hit_that_nobody_explains_is_the_earliest_requests_and_is_handed_on() -> None:
    prompts = [A, B, [*B, 13, 14], A]
    rollouts = [rollout(i, prompt) for i, prompt in enumerate(prompts)]
    found = borrowed_prompts(trace_of(*prompts), rollouts, np.array([0, 4, 6, 4]))
    # the third hits what the second computed, over what that had borrowed; the last hits its own tokens
    assert found == ((1, (1, 2, 3, 4, 11, 12)), (2, (1, 2, 3, 4, 11, 12, 13, 14)))
    assert starts_of(rollouts).tolist() == [0, 2, 4, 6]


def test_a_hit_of_a_conversation_is_explained_by_its_earlier_turn() -> None:
    turns = [A, [*A, 20, 21, 5]]
    assert borrowed_prompts(trace_of(*turns), [rollout(i, t) for i, t in enumerate(turns)], np.array([0, 8])) == ()
    # also by that of a request which is not scored
    assert borrowed_prompts(trace_of(A, [*A, 5]), [rollout(1, [*A, 5])], np.array([4])) == ()


def test_a_pass_scores_rollouts_behind_the_prompts_that_it_names() -> None:
    rollouts = [rollout(0, A), rollout(1, B)]
    trainer = Pass("trainer", Model("float32"), 64)
    how = Pass("kv.borrowed", Model("float32"), 64, prompts=((1, tuple(A)),), only=(1,))
    (unit,) = plan_further_units(rollouts, trainer, [how], lambda version: version)
    (job,) = unit.jobs
    assert job.key == (0, 1) and job.sequence.prompt_token_ids.tolist() == A
    assert rollouts[1].sequence.prompt_token_ids.tolist() == B
