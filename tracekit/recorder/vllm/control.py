"""Calls that steer an engine (pause, reset, sleep, abort…) become rows of the control table."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tracekit.recorder.guard import never_raise
from tracekit.recorder.vllm.events import TableRow
from tracekit.recorder.vllm.recording import Recording
from tracekit.recorder.vllm.snapshot import dumps


def recorded(of: Callable[[Any], Recording | None]) -> Callable[..., Any]:
    """Return what goes around a control method (see `hooks.wrap`): it calls it and records arguments and answer.

    Args:
        of: finds the recording of the object the method belongs to.
    """

    def around(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        time_ns = time.monotonic_ns()
        answer = original(self, *args, **kwargs)
        recording = of(self)
        if recording is not None:
            _append(recording, time_ns, original.__name__, args, kwargs, answer)
        return answer

    return around


@never_raise
def _append(recording: Recording, time_ns: int, name: str, args: Any, kwargs: Any, answer: Any) -> None:
    row = {
        "engine_step": recording.engine_step,
        "time_ns": time_ns,
        "name": name,
        "arguments": dumps({"args": args, "kwargs": kwargs}),
        # a pause answers when the engine is idle
        "answer": dumps("pending" if isinstance(answer, Future) else answer),
    }
    recording.session.append(TableRow("control", row))
