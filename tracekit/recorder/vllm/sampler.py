"""What the wraps of all samplers share: what one keeps of a call while it runs, for another of the same call."""

from __future__ import annotations

import threading
from typing import Any

from tracekit.recorder.guard import say_once

_now = threading.local()  # .held: the call that runs on this thread


class Held:
    """The tensors of one call; each generation's sampler uses those that it has.

    Example:
        with Held() as held:
            output = original(logits)  # on its way, other wraps write to `held_now()`
    """

    __slots__ = ("before", "cut", "logits", "masked", "scores")

    def __init__(self, before: Any = None) -> None:
        self.before = before  # [rows, vocab] of what the sampler works on in place, or None
        self.logits: Any = None  # [rows, vocab] after all processing but top-k and top-p
        self.masked: Any = None  # [rows, vocab] as top-k and top-p left it
        self.cut: tuple[Any, ...] | None = None  # arguments of top-k and top-p, where a kernel cuts and samples in one
        self.scores: Any = None  # what became of it, of each group (V0)

    def __enter__(self) -> Held:
        _now.held = self
        return self

    def __exit__(self, *_error: object) -> None:
        _now.held = None


def held_now() -> Held | None:
    """Return what is kept of the call that runs on this thread; None where none does."""
    return getattr(_now, "held", None)


def say_unasked(why: str) -> None:
    """Say once that the option that records everybody's logprobs has no effect here."""
    say_once(f"logprobs that the client does not ask for are not recorded: {why}")


def say_not_both(why: str) -> None:
    """Say once that of the raw and the processed logprobs only what the engine reports is recorded."""
    say_once(f"raw and processed logprobs are not both recorded: {why}")
