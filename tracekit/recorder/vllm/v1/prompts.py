"""Prompt logprobs of V1: what the model runner hands over once the last chunk of a prompt is computed.

vllm/v1/worker/gpu_model_runner.py `_get_prompt_logprobs_dict`, and vllm/v1/worker/gpu/sample/prompt_logprob.py for the
second model runner: a raw log-softmax, in the same tensors that the client's frontend gets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from tracekit.recorder.vllm.rows import LiveRequest


class Prompt(NamedTuple):
    """The scored tokens of one prompt: P rows, the last of the prompt's last token."""

    token_ids: Any  # [P, 1 + alternatives] integers, the prompt's own token first
    logprobs: Any  # [P, 1 + alternatives] float32
    ranks: Any  # [P] of the prompt's own token

    def num_rows(self, request: LiveRequest | None) -> dict[str, int]:
        """Rows by table; of a request that is not known all that the engine reports."""
        num_rows, width = self.logprobs.shape
        num_topk = width - 1 if request is None else min(request.num_prompt_topk, width - 1)
        return {table: n for table, n in (("prompt_logprobs", num_rows), ("prompt_topk", num_rows * num_topk)) if n}

    def append_to(
        self, columns_of: Callable[[str], dict[str, list[Any]]], request: LiveRequest, engine_step: int
    ) -> None:
        """Append the rows of both tables to their columns."""
        num_rows, width = self.logprobs.shape
        # the second model runner leaves out what an engine was told to read from the prefix cache; the first has
        # leftovers of memory there, in which an id may be anything
        positions = np.arange(request.num_prompt - num_rows, request.num_prompt)
        ids = self.token_ids.astype("u4")
        columns = columns_of("prompt_logprobs")
        columns["request"] += [request.number] * num_rows
        columns["position"] += positions.tolist()
        columns["token_id"] += ids[:, 0].tolist()
        columns["logprob"] += self.logprobs[:, 0].tolist()
        columns["rank"] += self.ranks.astype("u4").tolist()
        columns["engine_step"] += [engine_step] * num_rows
        k = min(request.num_prompt_topk, width - 1)
        if not k or not num_rows:
            return
        columns = columns_of("prompt_topk")
        columns["request"] += [request.number] * (num_rows * k)
        columns["position"] += np.repeat(positions, k).tolist()
        columns["rank"] += list(range(1, k + 1)) * num_rows
        columns["token_id"] += ids[:, 1 : k + 1].ravel().tolist()
        columns["logprob"] += self.logprobs[:, 1 : k + 1].ravel().tolist()


def prompt_arrays(prompts: Mapping[str, Any]) -> Iterator[tuple[str, Prompt]]:
    """Yield each request of a step whose prompt has been scored, with numpy's view of vLLM's LogprobsTensors."""
    for request_id, tensors in prompts.items():
        if tensors is not None:
            found = (tensors.logprob_token_ids, tensors.logprobs, tensors.selected_token_ranks)
            yield request_id, Prompt(*map(np.asarray, found))
