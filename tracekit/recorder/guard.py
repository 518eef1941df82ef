"""Nothing of ours may raise into the engine: one decorator, one line on stderr the first time, strict in tests."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec

P = ParamSpec("P")

_told: set[str] = set()


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


def failed(hook: str, error: Exception) -> None:
    """Say that a hook failed; under `TRACEKIT_STRICT=1` raise it instead."""
    if os.environ.get("TRACEKIT_STRICT") == "1":
        raise error
    kind = type(error).__name__
    # an error's text may hold ids: one line per hook and kind of error, or a long job fills its log
    say_once(f"the hook {hook} failed and this part is not recorded: {kind}: {error}", f"{hook} {kind}")


def never_raise(hook: Callable[P, None]) -> Callable[P, None]:
    """Turn any exception of a hook into one line on stderr; `TRACEKIT_STRICT=1` lets it through.

    Args:
        hook: a function called on the engine's thread; its result is not used.
    """

    @functools.wraps(hook)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            hook(*args, **kwargs)
        except Exception as error:
            failed(hook.__name__, error)

    return guarded
