"""Nothing of ours may raise into the engine: one decorator, one line on stderr the first time, strict in tests.

What a hook has left out because it failed is missing in the trace, which must say so: recordings ask for `failures`.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, ParamSpec

P = ParamSpec("P")

_told: set[str] = set()
_failures: dict[str, None] = {}  # each hook and kind of error once, in the order in which they first came


def say(text: str) -> None:
    """Print one line on stderr; an engine whose stderr is closed is left in peace."""
    if sys.stderr is None:  # closed before Python began: print() would take stdout, which is the job's
        return
    try:
        print(f"tracekit: {text}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def say_once(text: str, topic: str = "") -> None:
    """Print a line the first time this process has one on this topic (the text itself, where none is named)."""
    if (topic or text) not in _told:
        _told.add(topic or text)
        say(text)


def say_off(reason: str) -> None:
    """Say once why this process is not recorded."""
    say_once(f"{reason}; recording is off, the engine is untouched")


def failed(hook: str, error: BaseException) -> None:
    """Say that a hook failed, or let pass what is not ours; under `TRACEKIT_STRICT=1` raise it instead."""
    kind = type(error).__name__
    _failures[f"the hook {hook} failed ({kind}): what it would have recorded is missing"] = None
    let_pass(error)
    if os.environ.get("TRACEKIT_STRICT") == "1":
        raise error
    # an error's text may hold ids: one line per hook and kind of error, or a long job fills its log
    say_once(f"the hook {hook} failed and this part is not recorded: {kind}: {error}", f"{hook} {kind}")


def failures() -> list[str]:
    """Return what hooks of this process have left out, in the order in which they first did."""
    return list(_failures)


def let_pass(error: BaseException) -> None:
    """Raise what a signal handler raised while a hook ran, such as a time-out of the job's or Ctrl-C, and exits."""
    if not isinstance(error, Exception):
        raise error
    at, codes = error.__traceback__, set()
    while at is not None:
        codes.add(at.tb_frame.f_code)
        at = at.tb_next
    if any(_code_of(signal.getsignal(number)) in codes for number in signal.valid_signals()):
        raise error


def _code_of(handler: Any) -> Any:
    while isinstance(handler, functools.partial):
        handler = handler.func
    return getattr(getattr(handler, "__func__", handler), "__code__", None)


def never_raise(hook: Callable[P, None]) -> Callable[P, None]:
    """Turn any exception of a hook into one line on stderr; `TRACEKIT_STRICT=1` lets it through.

    Args:
        hook: a function called on the engine's thread; its result is not used.
    """

    @functools.wraps(hook)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            hook(*args, **kwargs)
        except BaseException as error:
            failed(hook.__name__, error)

    return guarded
