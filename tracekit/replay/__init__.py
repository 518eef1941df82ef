"""Replay a trace: score what an engine recorded with the trainer's weights, and say where the two part.

This package can be called: `tracekit.replay("trace.arrow", model="./checkpoint-0")` is
`tracekit.replay.runner.replay`, which says what it takes.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracekit.replay.output import Replay


class _Callable(ModuleType):
    """Makes `tracekit.replay` the function that people call, and leaves it the package that Python imports."""

    def __call__(self, *args: Any, **kwargs: Any) -> Replay:
        from tracekit.replay.runner import replay

        return replay(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        from tracekit.replay.runner import replay

        return inspect.signature(replay)


sys.modules[__name__].__class__ = _Callable
