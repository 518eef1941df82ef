"""What one pass of a scorer says of recorded tokens: the noun that scoring makes, replay gathers and diagnose reads.

It names no array library: torch's tensors stand in it while a chunk of logits is scored, numpy's arrays afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

RAW = "raw"
PROCESSED = "processed"

Array = TypeVar("Array")
Other = TypeVar("Other")
Values = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Scores(Generic[Array]):
    """Scores of N tokens, in nats where they are logprobs; NaN where a pass did not score a token.

    Logprobs hold float32 values in float64 arrays, so casting back to float32 is exact. The noise gain of a token is
    the first-order response of its logprob to independent noise of standard deviation 1 on every logit:
    sqrt((1 - p)^2 + sum of p_j^2 over the others), times 1/temperature under the processed distribution.

    Attributes:
        raw_logprob: [N] log-softmax of the model's own logits, before any sampling parameter.
        processed_logprob: [N] after masks, penalties, temperature and truncation; -inf outside the kept set.
        forced_logprob: [N] as processed_logprob, with the recorded token put into the kept set where it was not in it.
        kept_count: [N] tokens that survive masks, min-p, top-k and top-p; 1 is a forced token, 0 is not scored.
        argmax_token_id: [N] argmax of the raw logits; -1 is not scored.
        raw_noise_gain: [N] of raw_logprob.
        processed_noise_gain: [N] of forced_logprob.
        edge_logprobs: [N, 2] processed_logprob with one token fewer, and one more, at the edge of the kept set.
        entropy: [N] of the raw distribution, in nats.
        kept_mass: [N] probability of the kept set after penalties and temperature, before masks and truncation
            renormalise it; 1 where they drop nothing.
        profile: [N, W] what is kept of the row's raw logits, as `tracekit.scoring.profile` lays it out; W is 0 where
            nobody asked for it.
    """

    raw_logprob: Array
    processed_logprob: Array
    forced_logprob: Array
    kept_count: Array
    argmax_token_id: Array
    raw_noise_gain: Array
    processed_noise_gain: Array
    edge_logprobs: Array
    entropy: Array
    kept_mass: Array
    profile: Array

    def logprob(self, semantic: str) -> Array:
        """Return the logprobs of one semantic, [N]; processed ones are the forced kind, so that all are finite."""
        return self.raw_logprob if semantic == RAW else self.forced_logprob

    def gain(self, semantic: str) -> Array:
        """Return the noise gain of one semantic, [N]."""
        return self.raw_noise_gain if semantic == RAW else self.processed_noise_gain

    def each(self, change: Callable[[Array], Other]) -> Scores[Other]:
        """Return the scores with every field changed in the same way."""
        return Scores(*(change(getattr(self, field.name)) for field in fields(self)))

    @classmethod
    def join(cls, parts: Sequence[Scores[Array]], concatenate: Callable[[list[Array]], Array]) -> Scores[Array]:
        """Return the scores of several runs of tokens, one after the other."""
        return cls(*(concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def unscored(num_tokens: int, profile_width: int = 0) -> Scores[Values]:
    """Return scores of tokens that no pass has scored: NaN, 0 survivors, no argmax."""
    columns: dict[str, Values] = {field.name: np.full(num_tokens, np.nan) for field in fields(Scores)}
    columns["kept_count"] = np.zeros(num_tokens, dtype=np.int64)
    columns["argmax_token_id"] = np.full(num_tokens, -1, dtype=np.int64)
    columns["edge_logprobs"] = np.full((num_tokens, 2), np.nan)
    columns["profile"] = np.full((num_tokens, profile_width), np.nan, dtype=np.float32)
    return Scores(**columns)


def put(into: Scores[Values], where: Values | slice, scores: Scores[Values]) -> None:
    """Write the scores of some tokens into those of more; `where` holds their indices, or is a slice."""
    for field in fields(into):
        getattr(into, field.name)[where] = getattr(scores, field.name)
