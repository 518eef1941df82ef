"""Signals that ask a process to end, while something must not end with them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

ASK_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def answered_by(answer: Callable[[int], None]) -> Iterator[None]:
    """Call `answer` with the number of each signal of `ASK_TO_END` inside; one that is ignored (`nohup`) stays so."""
    before = {n: signal.getsignal(n) for n in ASK_TO_END if signal.getsignal(n) is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda n, _frame: answer(n))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
