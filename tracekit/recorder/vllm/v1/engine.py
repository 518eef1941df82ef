"""One V1 engine as its switch sees it: found by its scheduler, turned on and off before a `schedule()`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import say_once
from tracekit.recorder.settings import Options
from tracekit.recorder.vllm.boundary import before_next
from tracekit.recorder.vllm.held import Held
from tracekit.recorder.vllm.recording import Recording
from tracekit.recorder.vllm.v1 import arming
from tracekit.recorder.vllm.v1.recording import V1Recording, join_engine, open_for

MAX_FRAMES = 16  # between the engine core and its scheduler


class V1Engine(Held):
    """What `vllm.switch.Engine` asks for.

    Args:
        scheduler: vLLM's.
        watch: puts the hooks in.
        unwatch: takes them out.
    """

    def __init__(self, scheduler: Any, watch: Callable[[Options, Any], None], unwatch: Callable[[], None]) -> None:
        super().__init__("v1", scheduler, unwatch)
        self._watch = watch

    def is_idle(self) -> bool:
        """Whether it has no request."""
        scheduler = self._owner()
        return scheduler is not None and not scheduler.requests

    def at_boundary(self, turn: Callable[[], None]) -> None:
        """Call `turn` on the engine's thread, before its next step."""
        from vllm.v1.core.sched.scheduler import Scheduler

        scheduler = self._owner()
        if scheduler is not None:
            before_next(Scheduler, "schedule", scheduler, turn)

    def begin(self, options: Options) -> V1Recording | None:
        """Put the hooks in and open a recording; called within the engine core's step."""
        scheduler = self._owner()
        if scheduler is None:
            return None
        self._watch(options, scheduler)
        recording = open_for(scheduler, options, first_step=None)
        if recording is not None:
            join_engine(recording, scheduler, self._last_step, recording.options.told())
            core, is_process = _core_above(scheduler)
            if core is not None:
                recording.ask(core.model_executor, not is_process)
            if options.asks_workers():
                recording.trouble = _armed(core, options)
            recording.on_end = self._ended
        return recording

    def wind_up(self, recording: Recording) -> None:
        """Let workers do nothing for it any more."""
        scheduler = self._owner()
        if scheduler is not None and recording.options.asks_workers():
            core, _ = _core_above(scheduler)
            if core is not None and (trouble := arming.call(core.model_executor, arming.DISARM)):
                say_once(f"workers cannot be told to stop: {trouble}")


def _armed(core: Any, options: Options) -> str:
    """Tell workers what to do for a recording; return why they cannot, or nothing."""
    if core is None:
        return "workers cannot be asked: the engine core was not found above its scheduler"
    trouble = arming.call(core.model_executor, arming.ARM, options.logprobs, options.probe, options.sample)
    return trouble and f"workers cannot do what was asked: {trouble}"


def _core_above(scheduler: Any) -> tuple[Any, bool]:
    """Return the engine core that is about to call its scheduler on this thread, and whether it has a process."""
    from vllm.v1.engine import core

    frame = sys._getframe(1)
    for _ in range(MAX_FRAMES):
        found = frame.f_locals.get("self")
        if isinstance(found, core.EngineCore) and found.scheduler is scheduler:
            return found, isinstance(found, core.EngineCoreProc)
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None, False
