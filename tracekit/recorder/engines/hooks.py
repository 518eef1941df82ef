"""Wraps of an engine's methods, once each, by class."""

import functools
from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import never_raise


def wrap(owner: type, name: str, around: Callable[..., Any]) -> None:
    """Replace ``owner.name`` by ``around(original, self, *args, **kwargs)``, once."""
    original = vars(owner)[name]
    if getattr(original, "_tracekit", False):
        return

    @functools.wraps(original)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        return around(original, self, *args, **kwargs)

    wrapper._tracekit = True  # type: ignore[attr-defined]
    setattr(owner, name, wrapper)


def after(owner: type, name: str, hook: Callable[..., None]) -> None:
    """Call ``hook(self, result, *args, **kwargs)`` after ``owner.name``; whatever the hook raises stays with us."""
    guarded = never_raise(hook)

    def around(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        guarded(self, result, *args, **kwargs)
        return result

    wrap(owner, name, around)
