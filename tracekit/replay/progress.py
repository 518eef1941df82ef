"""A line on stderr with the time that is left, shown on a terminal, or once work takes longer than two seconds."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TextIO

_PATIENCE_SECS = 2.0
_REDRAW_SECS = 0.2
_LINE_SECS = 10.0  # where the stream is a file, a line each


def talk(line: str) -> None:
    """Say a line beside the results."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Counts tokens of several kinds of work towards their totals; use as a context manager so that the line is ended.

    What is left of each kind is weighted by what its tokens have cost so far; a kind that did not begin yet, by what
    the others did.
    """

    def __init__(
        self,
        label: str,
        totals: Mapping[Any, int],
        stream: TextIO | None = None,
        *,
        quiet: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label = label
        self._left = dict(totals)
        self._done: dict[Hashable, int] = {}
        self._secs: dict[Hashable, float] = {}
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._clock = clock
        self._last = clock()
        self._next = math.inf if quiet else self._last + (_REDRAW_SECS if self._tty else _PATIENCE_SECS)
        self._drawn = ""

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn and (self._tty or self._drawn != self._line()):
            self._draw(end="\n")

    def begin(self) -> None:
        """Count the time from here on: a model was loaded, or something else that is no scoring."""
        self._last = self._clock()

    def advance(self, kind: Hashable, num_tokens: int) -> None:
        """Count tokens of a kind that were scored since the last call, and redraw when it is time."""
        now = self._clock()
        self._secs[kind] = self._secs.get(kind, 0.0) + now - self._last
        self._last = now
        self._done[kind] = self._done.get(kind, 0) + num_tokens
        self._left[kind] = max(self._left[kind] - num_tokens, 0)
        if now >= self._next:
            self._next = now + (_REDRAW_SECS if self._tty else _LINE_SECS)
            self._draw(end="" if self._tty else "\n")

    def skip(self, kind: Hashable, num_tokens: int) -> None:
        """Take tokens off the total, which an earlier run scored."""
        self._left[kind] -= num_tokens

    @property
    def secs_left(self) -> float:
        """What is left, in seconds; NaN where nothing was measured."""
        done, secs = sum(self._done.values()), sum(self._secs.values())
        rate = secs / done if done else math.nan
        secs_left = 0.0
        for kind, left in self._left.items():
            if left:
                secs_left += left * (self._secs[kind] / self._done[kind] if self._done.get(kind) else rate)
        return secs_left

    def _line(self) -> str:
        done, left, secs = sum(self._done.values()), sum(self._left.values()), self.secs_left
        spent = sum(self._secs.values())
        share = spent / (spent + secs) if spent + secs > 0 else 1.0
        bar = "#" * round(24 * share)
        of_all = f"{done}/{done + left} tokens of all passes"
        return f"{self.label} [{bar:<24}] {share:4.0%} {of_all}, {_clock_of(secs)} left"

    def _draw(self, *, end: str) -> None:
        self._drawn = self._line()
        self._stream.write(("\r" if self._tty else "") + self._drawn + end)
        self._stream.flush()


def _clock_of(secs: float) -> str:
    minutes, rest = divmod(math.ceil(secs), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
