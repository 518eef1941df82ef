"""Calls that may change weights: how a recording hears of them, and what is kept of their arguments."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import never_raise
from tracekit.recorder.vllm.hooks import wrap
from tracekit.recorder.vllm.snapshot import jsonable

MAX_ITEMS = 64  # of a list or dict among the arguments

_of_model: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def noted(
    recording: Any, note: Callable[..., None], original: Callable[..., Any], owner: Any, *args: Any, **kwargs: Any
) -> Any:
    """Call `original(owner, ...)`, then `note(recording, begin_ns, ...)`; without a recording only the first.

    Also where it raised: some of the weights may have changed.
    """
    begin_ns = time.monotonic_ns()
    try:
        return original(owner, *args, **kwargs)
    finally:
        if recording is not None:
            never_raise(note)(recording, begin_ns, *args, **kwargs)


def watch_loads(recording: Any, model: Any) -> None:
    """Note every `load_weights` of a model in this process from now on; what loaded it first is not counted."""
    _of_model[model] = recording
    for owner in type(model).__mro__:
        if "load_weights" in vars(owner):
            wrap(owner, "load_weights", _load_weights)
            break


def method_name(method: Any) -> str:
    """The name of a worker RPC, which may also be a function."""
    return method if isinstance(method, str) else str(getattr(method, "__name__", "callable"))


def brief(value: Any) -> Any:
    """Arguments as JSON types, which keep no tensor alive, without the tails of long lists and texts."""
    return jsonable(_cut(value))


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _cut(item) for key, item in list(value.items())[:MAX_ITEMS]}
        return kept | ({"…": f"{len(value) - MAX_ITEMS} more"} if len(value) > MAX_ITEMS else {})
    if isinstance(value, list | tuple):
        items = [_cut(item) for item in value[:MAX_ITEMS]]
        return items + ([f"… {len(value) - MAX_ITEMS} more"] if len(value) > MAX_ITEMS else [])
    # a function's repr is its address
    return getattr(value, "__qualname__", value)


def _load_weights(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    return noted(_of_model.get(self), _on_load_weights, original, self, *args, **kwargs)


def _on_load_weights(recording: Any, begin_ns: int, *args: Any, **kwargs: Any) -> None:
    recording.changed("load_weights", begin_ns, args, kwargs)
