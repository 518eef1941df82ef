"""The column that rides from the sampler to the engine core: on, off, and never seen by the scheduler."""

from functools import partial
from types import SimpleNamespace as Made
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from tracekit.recorder.vllm.v1 import column as v1_column

IDS = [[7, 7, 3], [9, 4, 9]]
LOGPROBS = [[-1.0, -1.0, -2.0], [-0.5, -0.25, -0.5]]
OTHER = [-3.0, -4.0]


class Logprobs(NamedTuple):
    """As vLLM's LogprobsTensors and LogprobsLists."""

    logprob_token_ids: Any
    logprobs: Any
    ranks: Any


def from_worker(*, with_column: bool) -> Any:
    tensors = Logprobs(torch.tensor(IDS, dtype=torch.int32), torch.tensor(LOGPROBS), torch.tensor([1, 2]))
    if with_column:
        tensors = v1_column.append(tensors, torch.tensor(OTHER))
        assert tensors.logprobs.shape == (2, 4) and tensors.logprob_token_ids.dtype == torch.int32
    return Made(logprobs=Logprobs(*(t.numpy() for t in tensors)))


def check_as_without(output: Any) -> None:
    assert output.logprobs.logprob_token_ids.tolist() == IDS and output.logprobs.logprobs.tolist() == LOGPROBS
    assert output.logprobs.ranks.tolist() == [1, 2]


def test_what_is_put_on_comes_off_once() -> None:
    output = from_worker(with_column=True)
    assert v1_column.take(output).tolist() == OTHER
    check_as_without(output)
    assert v1_column.take(output).tolist() == OTHER
    check_as_without(output)


@pytest.mark.parametrize("rows", [None, 0, 2])
def test_where_there_is_none_nothing_is_touched(rows: int | None) -> None:
    output = from_worker(with_column=False)
    if rows is None:
        output.logprobs = None
    elif not rows:
        output.logprobs = Logprobs(*(np.asarray(a)[:0] for a in output.logprobs))
    before = output.logprobs
    assert v1_column.take(output) is None and output.logprobs is before


def test_a_scheduler_of_somebody_elses_does_not_see_it() -> None:
    class Theirs:
        def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
            return scheduler_output, model_runner_output.logprobs.logprobs.shape

    update = partial(v1_column.taken_before, Theirs.update_from_output)
    output = from_worker(with_column=True)
    assert update(Theirs(), scheduler_output="step", model_runner_output=output) == ("step", (2, 3))
