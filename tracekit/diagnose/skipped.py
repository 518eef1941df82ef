"""Why recorded requests are left out of a replay: one row per reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Why = Literal[
    "shed",
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
    "beyond the vocabulary",
]


@dataclass(frozen=True)
class Reason:
    """What to say of requests that it holds for, after their number.

    Attributes:
        what: the words.
        because: why the verdict on them is withheld; empty where it is not.
        is_loss: rows of theirs are missing from the trace.
    """

    what: str
    because: str = ""
    is_loss: bool = False


def _not_recomputed(because: str) -> Reason:
    return Reason(f"whose processed logprobs cannot be recomputed: {because}", because)


# what is lost has an exit code of its own, and what nobody asked for cannot be judged by anyone
REASONS: dict[Why, Reason] = {
    "shed": Reason("that the recorder left out as a whole, because its window was filling up", is_loss=True),
    "no request row": Reason("whose own row is missing from the trace", is_loss=True),
    "missing tokens": Reason("with missing token rows", is_loss=True),
    "missing logprobs": Reason("with missing logprobs", is_loss=True),
    "not asked": Reason("that did not ask for logprobs"),
    "not reported": Reason(
        "whose raw and processed logprobs were recorded, but none as the engine reports them",
        "their logprobs as the engine reports them were not recorded",
    ),
    "no prompt ids": _not_recomputed("the prompt was given as embeddings, which the trace does not hold"),
    "not text": _not_recomputed("the prompt holds images or other input that replay does not load"),
    "adapter": _not_recomputed("a LoRA adapter sampled the tokens, which replay does not load"),
    "sampling parameter": _not_recomputed("{parameter} changed the logits in a way that the trace does not tell"),
    "beyond the vocabulary": Reason(
        "with token ids beyond the trainer's head: the engine sampled rows of its padding",
        "they hold token ids beyond the trainer's head: the engine sampled rows of its padding",
    ),
    "mixed kv": Reason(
        "over a cached block of KV in which the work of several weight versions meets, or of none that is known: where "
        "one ends and the other begins the trace does not tell",
        "a cached block of their KV holds the work of several weight versions, or of none that is known, and where one "
        "ends and the other begins the trace does not tell",
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
    def because(self) -> str:
        """Why the verdict on them is withheld; empty where it is not."""
        return REASONS[self.why].because.format(parameter=self.parameter)

    @property
    def what(self) -> str:
        """What to say of them, after their number."""
        return REASONS[self.why].what.format(parameter=self.parameter)
