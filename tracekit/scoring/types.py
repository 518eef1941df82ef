"""What goes into a scorer and what comes out: one recorded request, and the scores of its tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sequence", "TokenScores"]


@dataclass(frozen=True, eq=False)
class Sequence:
    """One recorded request with the tokens the engine accepted for it.

    Example:
        >>> Sequence(0, 7, np.array([1, 504], np.uint32), np.array([28, 30], np.uint32), {"temperature": 0.7})
    """

    engine: int
    request: int
    prompt_token_ids: NDArray[np.uint32]
    """[P] ids of the prompt, P >= 1."""
    token_ids: NDArray[np.uint32]
    """[T] ids of the completion, in order; T may be 0."""
    sampling: Mapping[str, Any]
    """Sampling parameters after the engine merged its defaults; what is left out has vLLM's default."""


@dataclass(frozen=True, eq=False)
class TokenScores:
    """Scores of the T completion tokens of one sequence, in their order; logprobs are in nats.

    Logprobs hold float32 values in float64 arrays, so casting back to float32 is exact.
    """

    raw_logprob: NDArray[np.float64]
    """[T] log-softmax of the model's own logits (before any sampling parameter)."""
    processed_logprob: NDArray[np.float64]
    """[T] after masks, penalties, temperature and truncation; -inf where the token is outside the kept set."""
    forced_logprob: NDArray[np.float64]
    """[T] as processed_logprob, with the recorded token put into the kept set where it was not in it."""
    kept_count: NDArray[np.int32]
    """[T] tokens that survive masks, min-p, top-k and top-p; 1 means that the token had no alternative."""
    argmax_token_id: NDArray[np.uint32]
    """[T] argmax of the raw logits."""
    raw_noise_gain: NDArray[np.float64]
    """[T] response of raw_logprob to iid logit noise of size eps: its deviation is eps times this."""
    processed_noise_gain: NDArray[np.float64]
    """[T] the same for forced_logprob, 1/temperature included."""
    edge_logprobs: NDArray[np.float64]
    """[T, 2] processed_logprob with one token fewer, and one more, at the edge of the kept set."""
