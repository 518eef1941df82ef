"""One V0 engine's recording: its counters, and how it is opened."""

from __future__ import annotations

import time
from typing import Any

from tracekit.recorder.guard import say_off
from tracekit.recorder.session import Session
from tracekit.recorder.settings import Options
from tracekit.recorder.vllm.describe import Described
from tracekit.recorder.vllm.events import Admitted, Finished, Moves
from tracekit.recorder.vllm.opening import open_recording, recording_of
from tracekit.recorder.vllm.recording import BY_REQUEST, Recording
from tracekit.recorder.vllm.snapshot import jsonable
from tracekit.recorder.vllm.v0.rows import V0Rows


class V0Recording(Recording):
    """One engine's counters and its session; hangs on the objects that the hooks see."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.has_driver = False
        self.in_process = True  # user code runs in the process of the engine
        self.time_ns = 0
        self.num_waiting = 0
        self.num_free_blocks = 0
        self.live: dict[str, Any] = {}
        self.moves: list[Moves] = []  # of KV blocks, since the last output

    def dispatch(self) -> None:
        """Stamp the forward that starts now: later would be after an update that its tokens do not see."""
        self.time_ns = time.monotonic_ns()
        if self.pending:
            self.start_versions()

    def admitted(self, group: Any) -> None:
        """Note a request; the first after a rest comes after whatever its owner did to the weights."""
        if not self.live and self.in_process:
            self.look()
        if group.lora_request is not None:
            self.adapter(group.lora_request, BY_REQUEST, time.monotonic_ns())
        again = group.request_id in self.live
        self.live[group.request_id] = group
        self.session.append(Admitted(time.monotonic_ns(), group, again))

    def finished(self, group: Any) -> None:
        """Note that a request has come to its end, however it did."""
        if self.live.pop(group.request_id, None) is None:
            return
        (sequence,) = group.seqs
        reason = type(sequence.status).get_finished_reason(sequence.status) or "error"
        time_ns, num_tokens = time.monotonic_ns(), sequence.get_output_len()
        self.session.append(Finished((group.request_id,), reason, self.engine_step, time_ns, num_tokens))
        if not self.live:
            self.session.hurry()


def open_for(engine: Any, options: Options | None, first_step: int = 0) -> V0Recording | None:
    """Open the recording of an LLMEngine, unless it is not to be recorded, or cannot be; the latter is said.

    Args:
        engine: vLLM's.
        options: how; None: not at all.
        first_step: its number.
    """
    if options is None or recording_of(engine) is not None:
        return None
    config = engine.vllm_config
    unsupported = _unsupported(config)
    if unsupported:
        say_off(f"{unsupported} is not recorded from a V0 engine")
        return None
    cache = config.cache_config
    resolved = {
        "scheduler_class": type(engine.scheduler[0]).__qualname__,
        "executor_class": type(engine.model_executor).__qualname__,
        "generation_config": jsonable(engine.generation_config_fields),
        "num_gpu_blocks": cache.num_gpu_blocks,
    }
    return open_recording(
        options,
        (engine, engine.model_executor, *engine.scheduler, *engine.scheduler_contexts),
        V0Recording,
        lambda: V0Rows(cache.num_gpu_blocks or 0, cache.block_size, options.logprobs, options.sample, first_step),
        Described("v0", config, "processed_logprobs", resolved),
    )


def _unsupported(config: Any) -> str:
    scheduler = config.scheduler_config
    if config.model_config.runner_type != "generate":
        return "an engine that does not generate"
    if getattr(scheduler, "num_scheduler_steps", 1) > 1:
        return "several steps at once (num_scheduler_steps)"
    if getattr(config, "speculative_config", None) is not None:
        return "speculative decoding"
    if config.parallel_config.pipeline_parallel_size > 1:
        return "pipeline parallelism"
    return ""
