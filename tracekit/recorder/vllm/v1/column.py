"""A value that rides from a worker's sampler to the engine core as one more column of the step's logprobs.

It needs no message of its own and waits for the same copy from the device; the engine core takes it off before vLLM's
scheduler looks, so that clients get what they get without us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import failed

SENTINEL = -0x74726163  # in the column of token ids, where no other id is negative


def append(tensors: Any, values: Any) -> Any:
    """Return vLLM's LogprobsTensors with one more column, on the device they are on.

    Args:
        tensors: [rows, width] token ids and logprobs.
        values: [rows] float32.
    """
    import torch

    ids = tensors.logprob_token_ids
    marks = torch.full((ids.shape[0], 1), SENTINEL, dtype=ids.dtype, device=ids.device)
    return tensors._replace(
        logprob_token_ids=torch.cat((ids, marks), dim=1),
        logprobs=torch.cat((tensors.logprobs, values.unsqueeze(1).to(tensors.logprobs.dtype)), dim=1),
    )


def take(output: Any) -> Any:
    """Take the column off a ModelRunnerOutput, once; return it ([rows] float32), or None where there is none."""
    taken = getattr(output, "_tracekit_column", None)
    lists = output.logprobs
    if taken is not None or lists is None:
        return taken
    ids = lists.logprob_token_ids
    if ids.ndim != 2 or not ids.shape[0] or ids[0, -1] != SENTINEL:
        return None
    values = lists.logprobs[:, -1]
    output.logprobs = lists._replace(logprob_token_ids=ids[:, :-1], logprobs=lists.logprobs[:, :-1])
    output._tracekit_column = values
    return values


def taken_before(original: Callable[..., Any], self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
    """Go around the `update_from_output` of a class that overrides vLLM's: it must not see the column either."""
    try:
        take(model_runner_output)
    except Exception as error:
        failed("update_from_output", error)
    return original(self, scheduler_output, model_runner_output)
