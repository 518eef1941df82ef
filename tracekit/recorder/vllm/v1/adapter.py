"""vLLM V1 (0.18 to 0.32): class-level wraps of the scheduler and of EngineCore, in the EngineCore process.

`Scheduler.schedule` and `Scheduler.update_from_output` are the one place where request, step, accepted token and
logprob are on the host together; the same SchedulerOutput object goes through both, in sync and async scheduling
(vllm/v1/core/sched/scheduler.py, vllm/v1/engine/core.py `step` and `step_with_batch_queue`).
"""

import time
from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import failed, never_raise, say_once
from tracekit.recorder.session import Session, new_engine_id
from tracekit.recorder.settings import daemon_address, logprobs_complaint, logprobs_option
from tracekit.recorder.vllm import control
from tracekit.recorder.vllm.describe import engine_row
from tracekit.recorder.vllm.hooks import after, install, wrap
from tracekit.recorder.vllm.v1 import column as v1_column
from tracekit.recorder.vllm.v1 import sampler as v1_sampler
from tracekit.recorder.vllm.v1 import sampler2 as v1_sampler2
from tracekit.recorder.vllm.v1 import weights as v1_weights
from tracekit.recorder.vllm.v1.blocks import V1Blocks, kv_groups
from tracekit.recorder.vllm.v1.rows import Dispatch, V1Rows
from tracekit.recorder.vllm.v1.weights import V1Weights

CLOSE_SECS = 2.0  # the parent kills an engine core about five seconds after asking it to end

CONTROL = (
    *("pause_scheduler", "resume_scheduler", "reset_prefix_cache", "sleep", "wake_up", "abort_requests"),
    *("add_lora", "remove_lora"),
)


def missing_features() -> str:
    """Name what this vLLM lacks of what the adapter relies on; empty when nothing is missing."""
    try:
        from vllm.v1.core.sched import output, scheduler
        from vllm.v1.engine import core
    except Exception as error:
        return f"vllm.v1: {error}"
    needs = {
        "Scheduler.schedule": hasattr(scheduler.Scheduler, "schedule"),
        "Scheduler.update_from_output": hasattr(scheduler.Scheduler, "update_from_output"),
        "EngineCore.preprocess_add_request": hasattr(core.EngineCore, "preprocess_add_request"),
        "CachedRequestData.resumed_req_ids": "resumed_req_ids"
        in getattr(getattr(output, "CachedRequestData", None), "__dataclass_fields__", {}),
        "SchedulerOutput.preempted_req_ids": "preempted_req_ids" in output.SchedulerOutput.__dataclass_fields__,
    }
    return ", ".join(name for name, there in needs.items() if not there)


class V1Adapter:
    """Wraps the classes once per process; every engine made afterwards gets a recording of its own."""

    kind = "v1"

    def attach(self) -> None:
        """Wrap Scheduler and EngineCore; idempotent, opens nothing until a scheduler is built."""
        from vllm.v1.core.sched.scheduler import Scheduler
        from vllm.v1.engine import core

        after(Scheduler, "__init__", _on_scheduler_built)
        after(Scheduler, "add_request", _on_request)
        install(Scheduler, "schedule", _schedule)
        after(Scheduler, "finish_requests", _on_finish_requests)
        install(Scheduler, "update_from_output", _update_from_output)
        after(core.EngineCore, "preprocess_add_request", _on_preprocess)
        wrap(core.EngineCore, "shutdown", _shutdown)
        classes = [c for c in vars(core).values() if isinstance(c, type) and issubclass(c, core.EngineCore)]
        for engine_class in classes:
            for name in CONTROL:
                if name in vars(engine_class):
                    wrap(engine_class, name, control.recorded(_of))
        v1_weights.attach(core, _of)
        option = logprobs_option()
        if option != "client":
            v1_sampler.attach(option)
            v1_sampler2.attach(option)
        if option == "both":
            from vllm.config import SchedulerConfig

            after(SchedulerConfig, "get_scheduler_cls", _on_scheduler_class)


class Recording(V1Weights):
    """One engine's counters and its session; hangs on the scheduler it belongs to."""

    def __init__(self, scheduler: Any, session: Session) -> None:
        super().__init__(session)
        self.dispatched: dict[int, Dispatch] = {}
        # a speculative step trims the sampled lists in place, so they must be copied before
        self.copies_sampled = bool(getattr(scheduler, "num_spec_tokens", 0))
        self.block_pool = scheduler.kv_cache_manager.block_pool

    def on_schedule(self, scheduler: Any, output: Any) -> None:
        """Stamp a step at dispatch. Runs at every step on the engine's thread: nothing here may cost."""
        if self.pending:
            self.start_versions()
        self.dispatched[id(output)] = (
            self.engine_step,
            time.monotonic_ns(),
            self.weight_version,
            len(scheduler.waiting),
            self.block_pool.get_num_free_blocks(),
        )
        self.engine_step += 1

    def on_output(self, scheduled: Any, raw: tuple[Any, ...], outputs: Any) -> None:
        """Hand a finished step to the session: references only."""
        at = self.dispatched.pop(id(scheduled), None)
        event = ("output", at, scheduled, raw, outputs, time.monotonic_ns())
        if at is not None:
            self.session.append(event)
        elif scheduled.total_num_scheduled_tokens:
            # a scheduler class with a schedule() of its own: which weights sampled these tokens is not known
            self.engine_step += 1
            self.session.lose(event, "the step was not seen when it was scheduled")


def _of(owner: Any) -> Recording | None:
    scheduler = getattr(owner, "scheduler", owner)
    return getattr(scheduler, "_tracekit_recording", None)


def _on_scheduler_class(_config: Any, scheduler_class: type, *_args: Any, **_kwargs: Any) -> None:
    owner = next(c for c in scheduler_class.__mro__ if "update_from_output" in vars(c))
    install(owner, "update_from_output", v1_column.taken_before)


def _on_scheduler_built(scheduler: Any, _result: None, *_args: Any, **_kwargs: Any) -> None:
    from tracekit.recorder.commands import Commands
    from tracekit.recorder.stream import Stream

    address = daemon_address()
    if address is None or _of(scheduler) is not None:
        return
    config = scheduler.vllm_config
    engine_id = new_engine_id()
    if logprobs_complaint():
        say_once(logprobs_complaint())
    mode = str(getattr(config.model_config, "logprobs_mode", "raw_logprobs"))
    late_rejections = bool(config.scheduler_config.async_scheduling and config.speculative_config)
    blocks = V1Blocks(kv_groups(scheduler), late_rejections)
    encoder = V1Rows(scheduler.kv_cache_config.num_blocks, logprobs_option(), mode, blocks)
    stream = Stream(address, engine_id)
    session = Session(encoder, stream)
    scheduler._tracekit_recording = recording = Recording(scheduler, session)
    Commands(stream, session, recording.label)
    session.append(("engines", _describe(engine_id, config, scheduler, mode)))


def _describe(engine_id: str, config: Any, scheduler: Any, mode: str) -> dict[str, Any]:
    resolved = {
        "scheduler_class": type(scheduler).__qualname__,
        "num_gpu_blocks": getattr(scheduler.kv_cache_config, "num_blocks", None),
    }
    return engine_row(engine_id, V1Adapter.kind, config, mode, resolved)


def _on_preprocess(core: Any, _result: Any, request: Any) -> None:
    # runs in the input thread, before the scheduler sees the request; Request itself drops the caller's id
    recording = _of(core)
    if recording is not None:
        recording.session.append(("external", request.request_id, request.external_req_id or request.request_id))


def _on_request(scheduler: Any, _result: None, request: Any) -> None:
    recording = _of(scheduler)
    if recording is not None and scheduler.requests.get(request.request_id) is request:
        recording.session.append(("requests", time.monotonic_ns(), request))
        recording.admitted(request, first=len(scheduler.requests) == 1)


def _schedule(original: Callable[..., Any]) -> Callable[..., Any]:
    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        recording = getattr(self, "_tracekit_recording", None)
        if recording is not None and output.total_num_scheduled_tokens:
            try:
                recording.on_schedule(self, output)
            except Exception as error:
                failed("schedule", error)
        return output

    return schedule


def _update_from_output(original: Callable[..., Any]) -> Callable[..., Any]:
    # the names are vLLM's, so that it may also be called with keywords
    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        recording = getattr(self, "_tracekit_recording", None)
        column = None
        try:
            column = v1_column.take(model_runner_output)
        except Exception as error:
            failed("update_from_output", error)
        if recording is None:
            return original(self, scheduler_output, model_runner_output)
        ids = model_runner_output.sampled_token_ids
        if recording.copies_sampled and ids:
            ids = [list(row) for row in ids]
        outputs = original(self, scheduler_output, model_runner_output)
        try:
            raw = (ids, model_runner_output.req_id_to_index, model_runner_output.logprobs, column)
            recording.on_output(scheduler_output, raw, outputs)
        except Exception as error:
            failed("update_from_output", error)
        return outputs

    return update_from_output


def _on_finish_requests(scheduler: Any, result: Any, request_ids: Any, finished_status: Any) -> None:
    recording = _of(scheduler)
    if recording is None or not result:
        return
    # 0.18 returns (request id, client) pairs, 0.32 the requests themselves
    ended = [r[0] if isinstance(r, tuple) else r.request_id for r in result]
    reason = "abort" if "ABORT" in str(finished_status) else "error"
    recording.session.append(("finished", ended, reason, recording.engine_step, time.monotonic_ns()))


def _shutdown(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    recording = _of(self)
    if recording is not None:
        # deliver before the executor goes down: the parent may kill us while it does
        never_raise(recording.close)(CLOSE_SECS)
    return original(self, *args, **kwargs)
