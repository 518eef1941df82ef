"""One V1 engine's recording: its counters, and how it is opened."""

from __future__ import annotations

import time
from typing import Any

from tracekit.recorder.session import Session
from tracekit.recorder.settings import logprobs_option
from tracekit.recorder.vllm.describe import Described
from tracekit.recorder.vllm.events import Dispatch, Step, make
from tracekit.recorder.vllm.generation_config import generation_config
from tracekit.recorder.vllm.opening import open_recording
from tracekit.recorder.vllm.v1.blocks import V1Blocks
from tracekit.recorder.vllm.v1.groups import kv_groups
from tracekit.recorder.vllm.v1.rows import V1Rows
from tracekit.recorder.vllm.v1.weights import V1Weights


class V1Recording(V1Weights):
    """One engine's counters and its session; hangs on the scheduler it belongs to."""

    def __init__(self, scheduler: Any, session: Session) -> None:
        super().__init__(session)
        self.dispatched: dict[int, Dispatch] = {}
        # a speculative step trims the sampled lists in place, so they must be copied before
        self.copies_sampled = bool(getattr(scheduler, "num_spec_tokens", 0))
        self.block_pool = scheduler.kv_cache_manager.block_pool
        self.requests = scheduler.requests  # those that have not come to their end

    def on_schedule(self, scheduler: Any, output: Any) -> None:
        """Stamp a step at dispatch. Runs at every step on the engine's thread: nothing here may cost."""
        if self.pending:
            self.start_versions()
        now, num_free_blocks = time.monotonic_ns(), self.block_pool.get_num_free_blocks()
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
        elif scheduled.total_num_scheduled_tokens:
            # a scheduler class with a schedule() of its own: which weights sampled these tokens is not known
            self.engine_step += 1
            self.session.lose(event, "the step was not seen when it was scheduled")


def open_for(scheduler: Any) -> V1Recording | None:
    """Open the recording of the engine that a new scheduler belongs to."""
    config = scheduler.vllm_config
    mode = str(getattr(config.model_config, "logprobs_mode", "raw_logprobs"))
    late_rejections = bool(config.scheduler_config.async_scheduling and config.speculative_config)

    def rows() -> V1Rows:
        blocks = V1Blocks(kv_groups(scheduler), late_rejections)
        return V1Rows(scheduler.kv_cache_config.num_blocks, logprobs_option(), mode, blocks)

    resolved = {
        "scheduler_class": type(scheduler).__qualname__,
        "generation_config": generation_config(config.model_config),
        "num_gpu_blocks": getattr(scheduler.kv_cache_config, "num_blocks", None),
    }
    return open_recording(
        (scheduler,), lambda session: V1Recording(scheduler, session), rows, Described("v1", config, mode, resolved)
    )
