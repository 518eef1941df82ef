"""Wraps of an engine's methods: put in once for each purpose, remembered, and taken out again.

A wrap that somebody else has wrapped in turn cannot be taken out without theirs: it is switched off, and from then on
calls what it wraps and does nothing else.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

from tracekit.recorder.guard import failed, say_once

Method = Callable[..., Any]
ABSENT = object()  # what an owner had in place of a method that we added

_hooks: list[Hook] = []  # in the order in which they were put in
_lock = threading.RLock()  # the engine's thread and the one that takes orders both change it


@dataclass(eq=False)
class Hook:
    """One wrap."""

    owner: Any  # a class or a module
    name: str
    make: Callable[[Any, Hook], Any]  # makes what is called in place of the original
    purpose: object
    original: Any  # a function or a property; `ABSENT` where there was none
    installed: Any = None
    active: bool = True


def install(owner: Any, name: str, make: Callable[[Method, Hook], Method], purpose: object = None) -> None:
    """Replace `owner.name` by `make(original, hook)`, once for each purpose.

    Args:
        owner: a class or a module.
        name: a function or a property of it; of a property, the getter is replaced.
        make: returns what is called instead; it must do nothing of its own while `hook.active` is False.
        purpose: sets apart wraps of one method.

    Raises:
        KeyError: the owner itself has no such name.
    """
    with _lock:
        _install(owner, name, make, purpose)


def _install(owner: Any, name: str, make: Callable[[Method, Hook], Method], purpose: object) -> None:
    original = vars(owner)[name]
    method: Any = original.fget if isinstance(original, property) else original
    purposes = getattr(method, "_tracekit", ())
    if purpose in purposes:
        _switch_on(owner, name, purpose)
        return
    hook = Hook(owner, name, make, purpose, original)
    wrapper = functools.wraps(method)(make(method, hook))
    wrapper._tracekit = (*purposes, purpose)  # type: ignore[attr-defined]
    is_property = isinstance(original, property)
    hook.installed = property(wrapper, original.fset, original.fdel) if is_property else wrapper
    setattr(owner, name, hook.installed)
    _hooks.append(hook)


def wrap(owner: Any, name: str, around: Method, purpose: object = None) -> None:
    """Replace `owner.name` by `around(original, *args, **kwargs)`, once for each purpose."""

    def make(original: Method, hook: Hook) -> Method:
        def method(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs) if hook.active else original(*args, **kwargs)

        return method

    install(owner, name, make, purpose)


def after(owner: type, name: str, hook: Callable[..., None], purpose: object = None) -> None:
    """Call `hook(self, result, *args, **kwargs)` after `owner.name`; whatever the hook raises stays with us."""

    def make(original: Method, installed: Hook) -> Method:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            if installed.active:
                try:
                    hook(self, result, *args, **kwargs)
                except BaseException as error:
                    failed(hook.__name__, error)
            return result

        return method

    install(owner, name, make, purpose)


def add(owner: type, name: str, method: Method) -> None:
    """Give a class a method of ours, unless it has one of this name."""
    with _lock:
        if hasattr(owner, name):
            return
        setattr(owner, name, method)
        _hooks.append(Hook(owner, name, lambda _original, _hook: method, None, ABSENT, method))


def installed() -> list[Hook]:
    """Return what is in place."""
    return list(_hooks)


def remove(owner: Any, name: str, purpose: object) -> bool:
    """Take one wrap out; False where something else stands above it, so that it can only be switched off."""
    with _lock:
        found = [hook for hook in _hooks if (hook.owner, hook.name, hook.purpose) == (owner, name, purpose)]
        taken = [hook for hook in found[::-1] if _take_out(hook)]
        _hooks[:] = [hook for hook in _hooks if hook not in taken]
        return len(taken) == len(found)


def uninstall(keep: Collection[Hook] = ()) -> list[Hook]:
    """Take all wraps but those of `keep` out of this process: the originals stand where they stood.

    Call it between two steps: what a sampler sends along with a step, only our wrap of the scheduler takes off. A
    recording does not see the steps that run without wraps.

    Returns:
        What was active, for `reinstall`.
    """
    with _lock:
        taken = [hook for hook in _hooks if hook.active and hook not in keep]
        _hooks[:] = [hook for hook in reversed(_hooks) if hook in keep or not _take_out(hook)][::-1]
        return taken


def reinstall(hooks: Iterable[Hook]) -> None:
    """Put wraps in again that `uninstall` took out, in their order."""
    for hook in hooks:
        if hook.original is ABSENT:
            add(hook.owner, hook.name, hook.installed)
        else:
            install(hook.owner, hook.name, hook.make, hook.purpose)


def _take_out(hook: Hook) -> bool:
    """Restore what a wrap replaced; return False where it cannot, because something else stands there."""
    hook.active = False  # somebody may have kept it
    if vars(hook.owner).get(hook.name) is not hook.installed:
        say_once(f"{hook.owner.__name__}.{hook.name} was wrapped by others too: our wrap stays below and does nothing")
        return False
    if hook.original is ABSENT:
        delattr(hook.owner, hook.name)
    else:
        setattr(hook.owner, hook.name, hook.original)
    return True


def _switch_on(owner: Any, name: str, purpose: object) -> None:
    for hook in reversed(_hooks):
        if hook.owner is owner and hook.name == name and hook.purpose == purpose:
            hook.active = True
            return  # an older one stays off: somebody's wrap that forgets our mark stands between the two
