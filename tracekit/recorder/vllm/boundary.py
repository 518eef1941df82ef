"""The moment between two steps: a wrap of the method that begins a step, there only while somebody waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import failed
from tracekit.recorder.vllm import hooks

PURPOSE = "boundary"

_turns: dict[int, Callable[[], None]] = {}  # by the object whose step is waited for


def before_next(owner: type, name: str, target: Any, turn: Callable[[], None]) -> None:
    """Call `turn` on the engine's thread, before the next call of a method on an object; once.

    Args:
        owner: the class that has the method.
        name: the method's.
        target: the object.
        turn: what is called; it may put wraps around the same method, and the call goes through them.
    """
    _turns[id(target)] = turn

    def make(original: Callable[..., Any], hook: hooks.Hook) -> Callable[..., Any]:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            turn = _turns.pop(id(self), None) if hook.active else None
            if turn is None:
                return original(self, *args, **kwargs)
            # another engine of this process may still wait; where somebody wrapped us we stay below, switched off
            alone = not _turns and hooks.remove(owner, name, PURPOSE)
            try:
                turn()
            except Exception as error:
                failed(PURPOSE, error)
            return (vars(owner)[name] if alone else original)(self, *args, **kwargs)

        return method

    hooks.install(owner, name, make, PURPOSE)
