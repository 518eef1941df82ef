"""Why recorded requests are left out of a replay: one row per reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Why = Literal[
    "no request row",
    "missing tokens",
    "missing logprobs",
    "not asked",
    "not reported",
    "no prompt ids",
    "not text",
    "adapter",
    "sampling parameter",
    "mixed kv",
]


@dataclass(frozen=True)
class Reason:
    """What to say of requests that it holds for, after their number, and whether rows of theirs are missing."""

    what: str
    is_loss: bool = False


_RECOMPUTED = "whose processed logprobs cannot be recomputed: "
REASONS: dict[Why, Reason] = {
    "no request row": Reason("whose own row is missing from the trace", is_loss=True),
    "missing tokens": Reason("with missing token rows", is_loss=True),
    "missing logprobs": Reason("with missing logprobs", is_loss=True),
    "not asked": Reason("that did not ask for logprobs"),
    "not reported": Reason("whose raw and processed logprobs were recorded, but none as the engine reports them"),
    "no prompt ids": Reason(_RECOMPUTED + "the prompt was given as embeddings, which the trace does not hold"),
    "not text": Reason(_RECOMPUTED + "the prompt holds images or other input that replay does not load"),
    "adapter": Reason(_RECOMPUTED + "a LoRA adapter sampled the tokens, which replay does not load"),
    "sampling parameter": Reason(_RECOMPUTED + "{parameter} changed the logits in a way that the trace does not tell"),
    "mixed kv": Reason(
        "over a cached block of KV in which the work of several weight versions meets, or of none that is known: where "
        "one ends and the other begins the trace does not tell"
    ),
}


@dataclass(frozen=True)
class Skipped:
    """Requests that were left out for one reason.

    Attributes:
        why: the reason.
        parameter: the sampling parameter that is the reason, null where it is none.
        count: how many requests.
    """

    why: Why
    parameter: str | None
    count: int

    @property
    def what(self) -> str:
        """What to say of them, after their number."""
        return REASONS[self.why].what.format(parameter=self.parameter)
