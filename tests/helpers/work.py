"""How much work something does, counted and never timed: lines of tracekit that run, elements that numpy touches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import tracekit

_ROOT = str(Path(tracekit.__file__).parent)


class Counted(np.ndarray):
    """An array that counts the elements of every operation on it, and on what comes of it."""

    touched = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        plain = [_plain(value) for value in inputs]
        Counted.touched += max(np.size(value) for value in plain)
        if "out" in kwargs:
            kwargs["out"] = tuple(_plain(value) for value in kwargs["out"])
        return _counted(getattr(ufunc, method)(*plain, **kwargs))

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        plain = [_plain(value) for value in args]
        Counted.touched += max((np.size(value) for value in plain if isinstance(value, np.ndarray)), default=0)
        return _counted(function(*plain, **{name: _plain(value) for name, value in kwargs.items()}))

    def __getitem__(self, index: Any) -> Any:
        Counted.touched += index.size if isinstance(index, np.ndarray) else 1
        return _counted(np.asarray(self)[_plain(index)])

    def astype(self, *args: Any, **kwargs: Any) -> Any:
        Counted.touched += self.size
        return _counted(np.asarray(self).astype(*args, **kwargs))


def counted(array: np.ndarray) -> Counted:
    """The same array, counted."""
    return array.view(Counted)


def work(do: Callable[[], Any]) -> int:
    """Lines of tracekit that run while something is done, each time that they do, and elements of counted arrays."""
    lines = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        lines += event == "line"
        return trace if frame.f_code.co_filename.startswith(_ROOT) else None

    before, Counted.touched = sys.gettrace(), 0
    sys.settrace(trace)
    try:
        do()
    finally:
        sys.settrace(before)
    return lines + Counted.touched


def _plain(value: Any) -> Any:
    if isinstance(value, Counted):
        return np.asarray(value)
    if isinstance(value, tuple | list):
        return type(value)(_plain(one) for one in value)
    return value


def _counted(value: Any) -> Any:
    if type(value) is np.ndarray:
        return value.view(Counted)
    return (
        type(value)(*map(_counted, value))
        if isinstance(value, tuple) and hasattr(value, "_fields")
        else (tuple(map(_counted, value)) if isinstance(value, tuple) else value)
    )
