"""What engines are told to do: each command waits until its engine has answered, and the answer is on the disk."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Sequence

import grpc

from tracekit.rpc import messages
from tracekitd.catalog import Engine
from tracekitd.intake import Refused

MAX_SECS = 60.0  # for a caller without a deadline
REPLY_SECS = 0.5  # before the caller's deadline, so that the answer still reaches it
RECONNECT_SECS = 4.0  # a recorder whose connection broke tries again at most every two seconds
MAX_TEXT = 4096


def choose(known: Sequence[Engine], numbers: Sequence[int]) -> list[Engine]:
    """Return the engines of these numbers; without numbers all that have not ended. Trainers have no weights to label.

    Raises:
        Refused: NOT_FOUND for an unknown number, FAILED_PRECONDITION where there is no engine to be told.
    """
    known = [engine for engine in known if not engine.trainer]
    by_number = {engine.number: engine for engine in known}
    unknown = sorted(set(numbers) - set(by_number))
    if unknown:
        there = ", ".join(map(str, by_number)) or "none yet"
        raise Refused(grpc.StatusCode.NOT_FOUND, f"there is no engine {unknown[0]}, the engines are: {there}")
    chosen = [by_number[number] for number in sorted(set(numbers))] or [e for e in known if not e.ended]
    if not chosen:
        text = "every engine has ended" if known else "no engine has connected yet"
        raise Refused(grpc.StatusCode.FAILED_PRECONDITION, text)
    return chosen


def check_mark(mark: messages.MarkWeights) -> None:
    """Make sure that a label is one.

    Raises:
        Refused: INVALID_ARGUMENT.
    """
    if not mark.label:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "a label must not be empty")
    if len(mark.label) > MAX_TEXT or len(mark.checkpoint) > MAX_TEXT:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"a label or checkpoint has at most {MAX_TEXT} characters")


def time_for(remaining: float | None) -> float:
    """Return how long engines may take where the caller waits for `remaining` seconds (None: for ever)."""
    return MAX_SECS if remaining is None else min(MAX_SECS, max(remaining - REPLY_SECS, remaining / 2))


async def command(engine: Engine, mark: messages.MarkWeights, seconds: float) -> messages.CommandResult:
    """Tell one engine to label its weights and return what came of it; its `error` says why nothing did."""
    name = uuid.uuid4().hex
    engine.commands[name] = messages.Command(id=name, mark_weights=mark)
    engine.wake()
    try:
        error = await _wait(engine, name, seconds)
        return engine.results.get(name) or messages.CommandResult(id=name, error=error)
    finally:
        engine.commands.pop(name, None)
        engine.results.pop(name, None)


async def _wait(engine: Engine, name: str, seconds: float) -> str:
    """Wait for the answer; return why there is none."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    away_since = loop.time()
    while name not in engine.results:
        if engine.ended:
            return "the engine has ended"
        connected, now = engine.open, loop.time()
        until = deadline if connected else min(deadline, away_since + RECONNECT_SECS)
        if now >= until:
            return "it did not confirm in time, the label may arrive yet" if connected else "it is not connected"
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(engine.progress.wait(), until - now)
        if connected:
            away_since = loop.time()
    return ""
