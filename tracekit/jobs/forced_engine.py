"""What a generation of vLLM must do so that recorded tokens can be forced through it."""

from __future__ import annotations

from typing import Any, Protocol

Token = tuple[int, int, float]


class CannotForceError(Exception):
    """What this engine cannot do as recorded; its text is a sentence without its full stop."""


class Engine(Protocol):
    """What a generation of vLLM does for a re-run."""

    fingerprints: dict[str, list[Any]]
    """Of each folder that was loaded: name and hash of every tensor, as the recorder takes them."""

    def facts(self) -> dict[str, Any]:
        """Return what the engine is, as a recording of it would say."""

    def reload(self, folder: str) -> None:
        """Load the weights of a folder."""

    def begin(self) -> None:
        """Let go of all requests and of all that is cached."""

    def room(self, num_tokens: int) -> None:
        """Bound the tokens that steps compute from here on."""

    def add(self, request: int, cached: bool) -> None:
        """Admit a request, which may read the prefix cache or not."""

    def step(self, engine_step: int, rows: list[list[Any]], preempted: list[int]) -> list[Token]:
        """Schedule and run one step; raise CannotForceError where it is not the recorded one."""

    def take(self, engine_step: int) -> None:
        """Let the scheduler have the step's output."""

    def abort(self, requests: list[int]) -> None:
        """Abort requests."""

    def reset(self, running: bool) -> None:
        """Reset the prefix cache."""

    def alone(self, request: int, token_ids: list[int]) -> list[Token]:
        """Run one request from an empty cache to its end."""

    def prefill(self, request: int, token_ids: list[int]) -> list[Token]:
        """Run the tokens of one request as a part of its prompt."""

    def found(self) -> list[list[Any]]:
        """Return, and forget, which blocks admissions found computed."""
