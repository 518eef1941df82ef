"""One V1 engine's recording: its counters, and how it is opened."""

from __future__ import annotations

import time
from typing import Any

from tracekit.recorder.guard import say_off
from tracekit.recorder.session import Session
from tracekit.recorder.settings import Options
from tracekit.recorder.vllm.describe import Described
from tracekit.recorder.vllm.events import Admitted, Dispatch, Finished, Joined, Step, make
from tracekit.recorder.vllm.generation_config import generation_config
from tracekit.recorder.vllm.opening import open_recording
from tracekit.recorder.vllm.v1.blocks import V1Blocks
from tracekit.recorder.vllm.v1.groups import kv_groups
from tracekit.recorder.vllm.v1.rows import V1Rows
from tracekit.recorder.vllm.v1.weights import V1Weights

PATIENCE = 64  # steps that a stopped recording may see begin while it waits for outputs


class V1Recording(V1Weights):
    """One engine's counters and its session; hangs on the scheduler it belongs to.

    Attributes:
        joining: where it was attached to, until the first output: requests by id, with their computed tokens, or None
            of those that came since.
    """

    def __init__(self, scheduler: Any, session: Session) -> None:
        super().__init__(session)
        self.dispatched: dict[int, Dispatch] = {}
        # a speculative step trims the sampled lists in place, so they must be copied before
        self.copies_sampled = bool(getattr(scheduler, "num_spec_tokens", 0))
        self.requests = scheduler.requests  # those that have not come to their end
        self.joining: dict[str, tuple[Any, int, int | None]] | None = None
        self._held: list[Finished] = []  # of those
        self._patience = PATIENCE

    def has(self, request_id: str) -> bool:
        """Whether the engine has a request."""
        scheduler = next(iter(self.owners()), self)
        return self.over or request_id in scheduler.requests  # one that is over saw no more ends

    def num_under_way(self) -> int:
        """Return the steps that were dispatched and whose output has not come."""
        return len(self.dispatched)

    def admit(self, request: Any, first: bool) -> None:
        """Take a request that the scheduler has taken; `first`: it had none."""
        now = time.monotonic_ns()
        if self.joining is None:
            self.session.append(Admitted(now, request))
        else:
            self.joining[request.request_id] = (request, now, None)
        self.admitted(request, first)

    def finished(self, event: Finished) -> None:
        """Take what ended without an output."""
        if self.joining is None:
            self.session.append(event)
            if not self.requests:
                self.session.hurry()
        else:
            self._held.append(event)

    def join(self, scheduled: Any) -> None:
        """Tell of the requests that were under way, when the first recorded step comes back and before it is applied.

        Only now have the outputs of all steps before come, so that what a request has is what was not recorded.
        """
        if self.joining is None or id(scheduled) not in self.dispatched:
            return
        joining, self.joining = self.joining, None
        aborted = {request_id for event in self._held for request_id in event.request_ids}
        for request_id, (request, time_ns, computed) in joining.items():
            if computed is None:
                self.session.append(Admitted(time_ns, request))
                continue
            token_ids = list(request.output_token_ids)
            self.session.append(Joined(time_ns, request, self.since_step, computed, token_ids))
            if request.is_finished() and request_id not in aborted:
                ended = ((request_id,), str(request.get_finished_reason()), self.since_step - 1, time.monotonic_ns())
                self.session.append(Finished(*ended))
        for event in self._held:
            self.session.append(event)
        self._held = []

    def on_schedule(self, scheduler: Any, output: Any) -> None:
        """Stamp a step at dispatch. Runs at every step on the engine's thread: nothing here may cost."""
        if self.stopping:
            self._patience -= 1
            if not self._patience:
                self.end()
            return
        if self.pending:
            self.start_versions()
        now = time.monotonic_ns()
        num_free_blocks = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        fields = (self.engine_step, now, self.weight_version, len(scheduler.waiting), num_free_blocks)
        self.dispatched[id(output)] = make(Dispatch, fields)
        self.engine_step += 1

    def on_output(self, scheduled: Any, outputs: Any, token_ids: Any, output: Any, column: Any) -> None:
        """Hand a finished step to the session: references only.

        Args:
            scheduled: vLLM's SchedulerOutput.
            outputs: what the scheduler made of it for the clients.
            token_ids: what was sampled, before the scheduler worked on it.
            output: vLLM's ModelRunnerOutput.
            column: the logprobs that came along with it (`v1.column`).
        """
        at = self.dispatched.pop(id(scheduled), None)
        now = time.monotonic_ns()
        took = (token_ids, output.req_id_to_index, output.logprobs, column, (), output.prompt_logprobs_dict)
        event = make(Step, (at, scheduled, outputs, now, *took))
        if at is not None:
            self.session.append(event)
            self.wait()
            if not self.requests:
                self.session.hurry()
            if self.stopping and not self.dispatched:
                self.end()
        elif self.stopping or self.joining is not None:
            pass  # dispatched before the recording began, or after it was stopped
        elif scheduled.total_num_scheduled_tokens:
            # a scheduler class with a schedule() of its own: which weights sampled these tokens is not known
            self.engine_step += 1
            self.session.lose(event, "the step was not seen when it was scheduled")


def open_for(scheduler: Any, options: Options | None, first_step: int | None = 0) -> V1Recording | None:
    """Open the recording of the engine that a scheduler belongs to; None: it is not to be recorded, or is already.

    Args:
        scheduler: vLLM's.
        options: how; None: not at all.
        first_step: its number; None: it is not known yet.
    """
    if options is None:
        return None
    config = scheduler.vllm_config
    if getattr(config.model_config, "runner_type", "generate") == "pooling":
        say_off("an engine that does not generate is not recorded")
        return None
    mode = str(getattr(config.model_config, "logprobs_mode", "raw_logprobs"))
    late_rejections = bool(config.scheduler_config.async_scheduling and config.speculative_config)

    def rows() -> V1Rows:
        blocks = V1Blocks(kv_groups(scheduler), late_rejections)
        num_blocks = scheduler.kv_cache_config.num_blocks
        return V1Rows(num_blocks, options.logprobs, mode, blocks, options.sample, first_step)

    resolved = {
        "scheduler_class": type(scheduler).__qualname__,
        "generation_config": generation_config(config.model_config),
        "num_gpu_blocks": getattr(scheduler.kv_cache_config, "num_blocks", None),
    }
    described = Described("v1", config, mode, resolved)
    return open_recording(options, (scheduler,), lambda session: V1Recording(scheduler, session), rows, described)


def join_engine(recording: V1Recording, scheduler: Any, last_step: int, told: dict[str, Any]) -> None:
    """Begin a recording in the middle of its engine's life, just before a step.

    Args:
        recording: a new one.
        scheduler: vLLM's.
        last_step: of earlier recordings of this engine.
        told: how it is recorded, for the trace.
    """
    now, under_way = time.monotonic_ns(), dict(scheduler.requests)
    # 0.32 counts its steps; elsewhere it is at least one for each token of the longest output
    known = [getattr(scheduler, "current_step", 0), *(len(r.output_token_ids) for r in under_way.values()), last_step]
    recording.begin_at(max(known) + 1, len(under_way), told)
    recording.joining = {name: (request, now, request.num_computed_tokens) for name, request in under_way.items()}
