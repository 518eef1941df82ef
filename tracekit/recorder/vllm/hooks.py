"""Wraps of an engine's methods, once each, by class."""

import functools
from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import failed


def install(
    owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]], purpose: object = None
) -> None:
    """Replace ``owner.name`` by ``make(original)``, once for each purpose; the owner is a class or a module."""
    original = vars(owner)[name]
    done = getattr(original, "_tracekit", ())
    if purpose in done:
        return
    wrapper = functools.wraps(original)(make(original))
    wrapper._tracekit = (*done, purpose)  # type: ignore[attr-defined]
    setattr(owner, name, wrapper)


def wrap(owner: type, name: str, around: Callable[..., Any], purpose: object = None) -> None:
    """Replace ``owner.name`` by ``around(original, self, *args, **kwargs)``, once for each purpose."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, *args, **kwargs: around(original, self, *args, **kwargs)

    install(owner, name, make, purpose)


def after(owner: type, name: str, hook: Callable[..., None]) -> None:
    """Call ``hook(self, result, *args, **kwargs)`` after ``owner.name``; whatever the hook raises stays with us."""

    def make(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            try:
                hook(self, result, *args, **kwargs)
            except Exception as error:
                failed(hook.__name__, error)
            return result

        return method

    install(owner, name, make)
