"""A lossless recorder makes its engine wait between two steps instead of dropping what it cannot keep."""

from __future__ import annotations

import math
import time
from collections.abc import Sized
from typing import NamedTuple, Protocol

from tracekit.recorder.guard import say

AHEAD = 256  # steps that may wait for the encoder before the engine does
LOOK_SECS = 0.005


class Stall(NamedTuple):
    """One time that the engine waited."""

    begin_ns: int  # of the monotonic clock
    end_ns: int
    gave_up: bool  # it may wait no longer, though nothing has become free


class Line(Protocol):
    """The part of `tracekit.recorder.stream.Stream` that is needed here."""

    def waits(self) -> bool:
        """Whether a batch that finds no place is waited for."""

    def stop_waiting(self, for_good: bool = False) -> None:
        """Drop and count it instead, until there is room again, or for good."""


class Pace:
    """Lets the engine go no further ahead of its recorder than that can hold.

    Args:
        line: where batches go, which waits itself where it is full.
        max_stall_secs: the longest that the engine waits at once; after it rows are dropped and counted, as they are
            without this, until half of the window is free again.
    """

    def __init__(self, line: Line, max_stall_secs: float = math.inf) -> None:
        self._line, self._max_stall_secs = line, max_stall_secs

    def holds(self) -> bool:
        """Whether nothing may be dropped now."""
        return self._line.waits()

    def end(self) -> None:
        """Wait for nothing any more: the engine ends."""
        self._line.stop_waiting(for_good=True)

    def wait(self, events: Sized) -> Stall | None:
        """Wait while too many events are there; on the engine's thread, between two steps."""
        if len(events) < AHEAD or not self._line.waits():
            return None
        begin, gave_up = time.monotonic_ns(), False
        while len(events) >= AHEAD and self._line.waits():
            if (time.monotonic_ns() - begin) / 1e9 >= self._max_stall_secs:
                gave_up = True
                self._line.stop_waiting()
                say(f"the engine has waited {self._max_stall_secs:g} seconds for the daemon: now rows are dropped")
                break
            time.sleep(LOOK_SECS)
        return Stall(begin, time.monotonic_ns(), gave_up)
