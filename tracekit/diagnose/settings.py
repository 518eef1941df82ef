"""The sampling parameters that each token was sampled with, as the trace tells them."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

F8 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Settings:
    """What moves logprobs, [N] each."""

    temperature: F8  # divisor of the logits; 1 for greedy tokens
    top_p: F8  # 1 keeps all
    top_k: F8  # tokens kept; 0 keeps all
    min_p: F8  # 0 keeps all
    repetition_penalty: F8  # 1 does nothing
    frequency_penalty: F8  # 0 does nothing
    presence_penalty: F8  # 0 does nothing
    greedy: Mask  # the most likely token was taken
    whole: Mask  # no bias, mask or other parameter moved the logits, too

    def __getitem__(self, rows: Any) -> Settings:
        """Return those of some tokens."""
        return Settings(*(getattr(self, field.name)[rows] for field in fields(self)))

    def but(self, name: str, value: float | F8) -> Settings:
        """Return the settings with another value of one parameter."""
        return replace(self, **{name: np.broadcast_to(np.float64(value), self.temperature.shape)})  # type: ignore[arg-type]


NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
}
"""The value of each parameter that changes nothing."""
PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")


def neutral(num_tokens: int) -> Settings:
    """Return settings that change nothing, of so many tokens."""
    values = {name: np.full(num_tokens, value) for name, value in NEUTRAL.items()}
    return Settings(**values, greedy=np.zeros(num_tokens, bool), whole=np.ones(num_tokens, bool))
