"""A progress line on stderr with tokens per second, shown on a terminal, or once work takes longer than two seconds."""

from __future__ import annotations

import math
import sys
import time
from typing import TextIO

_PATIENCE_SECS = 2.0
_REDRAW_SECS = 0.2
_LINE_SECS = 10.0  # where the stream is a file, a line each


def talk(line: str) -> None:
    """Say a line beside the results."""
    print(line, file=sys.stderr, flush=True)


class Progress:
    """Counts tokens towards a total; use as a context manager so that the line is ended."""

    def __init__(self, label: str, total: int, stream: TextIO | None = None, *, quiet: bool = False) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self._stream = stream or sys.stderr
        self._tty = self._stream.isatty()
        self._start = time.monotonic()
        self._next = math.inf if quiet else self._start + (_REDRAW_SECS if self._tty else _PATIENCE_SECS)
        self._shown = False

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._shown:
            self._draw(time.monotonic(), end="\n")

    def advance(self, num_tokens: int) -> None:
        """Count tokens, and redraw when it is time."""
        self.done += num_tokens
        now = time.monotonic()
        if now >= self._next:
            self._next = now + (_REDRAW_SECS if self._tty else _LINE_SECS)
            self._draw(now, end="" if self._tty else "\n")

    def _draw(self, now: float, *, end: str) -> None:
        self._shown = True
        rate = self.done / max(now - self._start, 1e-9)
        share = self.done / self.total if self.total else 1.0
        bar = "#" * round(24 * min(share, 1.0))
        start = "\r" if self._tty else ""
        self._stream.write(
            f"{start}{self.label} [{bar:<24}] {share:4.0%} {self.done}/{self.total} tokens, {rate:.0f}/s{end}"
        )
        self._stream.flush()
