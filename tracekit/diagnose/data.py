"""What the diagnosis works on: flat arrays over all scored tokens of a run, and their scores.

``N`` is the number of scored tokens, in order of (engine, request, position). Every logprob is in nats.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

F8 = npt.NDArray[np.float64]
I8 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

RAW = "raw"
PROCESSED = "processed"

# the layers of mismatch, lowest first
NONE = "none"
SEMANTIC = "semantic"
INFERENCE_PATH = "inference path"


@dataclass(frozen=True)
class Scores:
    """One scoring pass over the run's tokens; NaN where the pass did not score a token.

    The noise gain of a token is the first-order response of its logprob to independent noise of standard deviation 1
    on every logit: sqrt(1 - 2 p_s + sum_j p_j^2), times 1/T under the processed distribution.
    """

    raw_logprob: F8  # [N]
    processed_logprob: F8  # [N], -inf where the recorded token is outside the scorer's own kept set
    forced_logprob: F8  # [N], processed, with the recorded token forced into the kept set
    kept_count: I8  # [N], survivors of the truncation; 1 is a forced token, 0 is not scored
    raw_noise_gain: F8  # [N]
    processed_noise_gain: F8  # [N]
    edge_logprobs: F8  # [N, 2], processed with one token fewer / one more kept

    def logprob(self, semantic: str) -> F8:
        """Return the logprobs of one semantic, [N]; processed ones are the forced kind, so that all are finite."""
        return self.raw_logprob if semantic == RAW else self.forced_logprob

    def gain(self, semantic: str) -> F8:
        """Return the noise gain of one semantic, [N]."""
        return self.raw_noise_gain if semantic == RAW else self.processed_noise_gain

    def edges(self, semantic: str) -> F8:
        """Return the values that a flip at the truncation's edge would give, [N, 2]; NaN for raw, which has no edge."""
        return np.full_like(self.edge_logprobs, np.nan) if semantic == RAW else self.edge_logprobs

    def take(self, index: I8 | Mask) -> Scores:
        """Return the scores of some tokens."""
        return Scores(**{f.name: getattr(self, f.name)[index] for f in fields(self)})


@dataclass(frozen=True)
class RolloutInfo:
    """One recorded request."""

    engine: int
    request: int
    request_id: str
    num_prompt_tokens: int


@dataclass(frozen=True)
class Run:
    """The recorded tokens of a run that were scored, with the passes that scored them."""

    rollouts: list[RolloutInfo]
    rollout: I8  # [N], index into rollouts, non-decreasing
    position: I8  # [N], 0-based over prompt and completion
    token_id: I8  # [N]
    rollout_logprob: F8  # [N], as the engine reported it
    weight_version: I8  # [N]
    engine_step: I8  # [N]
    temperature: F8  # [N], that the processed scores divide the logits by
    kept_mass: F8  # [N], the share of the mass that truncation must keep: top-p, 1 without it
    scores: Scores  # the trainer's pass
    other_shape: Scores  # the same weights and precision in another batch shape, on a sample
    other_precision: Scores  # the same weights in another body precision, on a sample
    alternatives: dict[str, Scores] = field(default_factory=dict)  # other readings of the parameters, on a sample
    logprobs_modes: tuple[str, ...] = ()  # what the engines declare

    @property
    def output_index(self) -> I8:
        """Position minus the prompt's length, [N]."""
        lengths = np.array([r.num_prompt_tokens for r in self.rollouts], dtype=np.int64)
        return self.position - lengths[self.rollout]

    @property
    def valid(self) -> Mask:
        """Tokens whose recorded logprob is a finite number, [N]; the others are counted and named, never used."""
        return np.isfinite(self.rollout_logprob)
