"""One V0 engine as its switch sees it: an LLMEngine, turned on and off before its scheduler's `schedule()`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from tracekit.recorder.settings import Options
from tracekit.recorder.vllm import hooks
from tracekit.recorder.vllm.boundary import before_next
from tracekit.recorder.vllm.events import Joined
from tracekit.recorder.vllm.held import Held
from tracekit.recorder.vllm.probe import PURPOSE, leave
from tracekit.recorder.vllm.recording import Recording
from tracekit.recorder.vllm.v0.recording import V0Recording, open_for

SERVED = "_tracekit_served"  # set on an engine whose process runs nobody's code


class V0Engine(Held):
    """What `vllm.switch.Engine` asks for.

    Args:
        engine: vLLM's LLMEngine.
        watch: puts the hooks in.
        unwatch: takes them out.
        follow: lets a recording see the driver's worker.
    """

    def __init__(
        self,
        engine: Any,
        watch: Callable[[Options], None],
        unwatch: Callable[[], None],
        follow: Callable[[V0Recording, Any, Options], None],
    ) -> None:
        super().__init__("v0", engine, unwatch)
        self._watch = watch
        self._follow = follow

    def is_idle(self) -> bool:
        """Whether it has no request."""
        engine = self._owner()
        return engine is not None and not any(scheduler.has_unfinished_seqs() for scheduler in engine.scheduler)

    def at_boundary(self, turn: Callable[[], None]) -> None:
        """Call `turn` on the engine's thread, before its next step."""
        from vllm.core.scheduler import Scheduler

        engine = self._owner()
        if engine is not None:
            # one that is not recorded has one scheduler: pipeline parallelism is refused
            before_next(Scheduler, "schedule", engine.scheduler[0], turn)

    def begin(self, options: Options) -> V0Recording | None:
        """Put the hooks in and open a recording; called before a step is scheduled."""
        engine = self._owner()
        if engine is None:
            return None
        self._watch(options)
        under_way = list(_under_way(engine))
        # V0 counts no steps: it is at least one for each token of the longest output
        known = [self._last_step, *(group.seqs[0].get_output_len() for group in under_way)]
        first_step = max(known) + 1
        recording = open_for(engine, options, first_step)
        if recording is None:
            return None
        recording.in_process = not getattr(engine, SERVED, False)
        recording.begin_at(first_step, len(under_way), recording.options.told())
        now = time.monotonic_ns()
        for group in under_way:
            (sequence,) = group.seqs
            recording.live[group.request_id] = group
            token_ids, computed = list(sequence.get_output_token_ids()), sequence.get_num_computed_tokens()
            recording.session.append(Joined(now, group, first_step, computed, token_ids))
        self._follow(recording, engine.model_executor, options)
        if options.asks_workers() and not recording.has_driver:
            recording.trouble = "its workers live in other processes, where only the tokens' own logprobs are recorded"
        recording.on_end = self._ended
        return recording

    def wind_up(self, recording: Recording) -> None:
        """Probe nothing any more; what V0's sampler sends along harms nobody."""
        if recording.options.probe is not None:
            hooks.uninstall(keep=[hook for hook in hooks.installed() if hook.purpose != PURPOSE])
            for owner in recording.owners():
                leave(owner)


def _under_way(engine: Any) -> Iterator[Any]:
    """The groups that the schedulers hold and that have not ended, those that compute first."""
    for scheduler in engine.scheduler:
        for group in (*scheduler.running, *scheduler.swapped, *scheduler.waiting):
            if not group.is_finished():
                yield group
