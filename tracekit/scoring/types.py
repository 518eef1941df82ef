"""What goes into a scorer: one recorded request with the tokens that were sampled for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.scoring.params import Params


@dataclass(frozen=True, eq=False)
class Sequence:
    """One recorded request with the tokens the engine accepted for it.

    Example:
        Sequence(0, 7, np.array([1, 504], np.uint32), np.array([28, 30], np.uint32), Params(temperature=0.7))
    """

    engine: int
    request: int
    prompt_token_ids: NDArray[np.uint32]
    """[P] ids of the prompt, P >= 1."""
    token_ids: NDArray[np.uint32]
    """[T] ids of the completion, in order; T may be 0."""
    params: Params
    """What moves logprobs among the sampling parameters, after the engine merged its defaults."""

    @property
    def num_inputs(self) -> int:
        """P + T - 1, the positions that a model has to run to score all of the completion (none for an empty one)."""
        return max(len(self.prompt_token_ids) + len(self.token_ids) - 1, 0)

    @property
    def input_ids(self) -> NDArray[np.int64]:
        """[P + T - 1] ids of the tokens at those positions."""
        return np.concatenate([self.prompt_token_ids, self.token_ids]).astype(np.int64)[: self.num_inputs]

    def outputs(self, start: int, stop: int) -> tuple[int, int]:
        """Indices into the completion of the first token that input positions start..stop score, and one past the last.

        The token at position p is sampled from the hidden state of position p - 1.
        """
        num_prompt = len(self.prompt_token_ids)
        first = max(start + 1, num_prompt) - num_prompt
        return first, max(stop + 1 - num_prompt, first)
