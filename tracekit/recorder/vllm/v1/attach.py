"""vLLM V1 (0.18 to 0.32): class-level wraps of the scheduler and of EngineCore, in the EngineCore process.

`Scheduler.schedule` and `Scheduler.update_from_output` are the one place where request, step, accepted token and
logprob are on the host together; the same SchedulerOutput object goes through both, in sync and async scheduling
(vllm/v1/core/sched/scheduler.py, vllm/v1/engine/core.py `step` and `step_with_batch_queue`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from tracekit.recorder.desk import serve
from tracekit.recorder.guard import failed, never_raise
from tracekit.recorder.settings import Options, options
from tracekit.recorder.vllm import control, worker
from tracekit.recorder.vllm.events import Finished, Named
from tracekit.recorder.vllm.hooks import Hook, after, install, installed, uninstall, wrap
from tracekit.recorder.vllm.opening import recording_of
from tracekit.recorder.vllm.recording import PLACE
from tracekit.recorder.vllm.switch import Switch
from tracekit.recorder.vllm.v1 import arming
from tracekit.recorder.vllm.v1 import column as v1_column
from tracekit.recorder.vllm.v1 import probe as v1_probe
from tracekit.recorder.vllm.v1 import probe2 as v1_probe2
from tracekit.recorder.vllm.v1 import sampler as v1_sampler
from tracekit.recorder.vllm.v1 import sampler2 as v1_sampler2
from tracekit.recorder.vllm.v1 import weights as v1_weights
from tracekit.recorder.vllm.v1.engine import V1Engine
from tracekit.recorder.vllm.v1.recording import V1Recording, open_for

_birth: list[Hook] = []  # what is there from the start, and stays

CLOSE_SECS = 2.0  # the parent kills an engine core about five seconds after asking it to end

CONTROL = (
    *("pause_scheduler", "resume_scheduler", "reset_prefix_cache", "sleep", "wake_up", "abort_requests"),
    *("add_lora", "remove_lora"),
)


def missing_features() -> str:
    """Name what this vLLM lacks of what the hooks rely on; empty when nothing is missing."""
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


def attach() -> None:
    """Be there when a scheduler is built, and let workers be asked; idempotent, opens nothing before that.

    Every engine made afterwards gets a recording of its own where a daemon is named. Elsewhere no step runs through
    anything of ours until it is attached to.
    """
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.worker.worker_base import WorkerBase

    after(Scheduler, "__init__", _on_scheduler_built)
    worker.attach(WorkerBase)
    arming.add_to(WorkerBase)
    if not _birth:
        _birth.extend(installed())
    told = options()
    if told is not None:
        watch(told)


def watch(told: Options, scheduler: Any = None) -> None:
    """Wrap Scheduler and EngineCore; idempotent.

    Args:
        told: how it is recorded.
        scheduler: that is there already; None: those that will be built.
    """
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine import core

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
    if told.probe is not None and scheduler is None:
        v1_probe.attach(told.probe, told.sample)
        v1_probe2.attach(told.probe, told.sample)
    option = told.logprobs
    if option != "client" and scheduler is None:
        v1_sampler.attach(option)
        v1_sampler2.attach(option)
    if option == "both" and scheduler is not None:
        _on_scheduler_class(None, type(scheduler))
    elif option == "both":
        from vllm.config import SchedulerConfig

        after(SchedulerConfig, "get_scheduler_cls", _on_scheduler_class)


def unwatch() -> None:
    """Take out what a recording needs: the engine's methods stand where they stood."""
    uninstall(keep=_birth)


def _of(owner: Any) -> V1Recording | None:
    found: V1Recording | None = recording_of(getattr(owner, "scheduler", owner))
    return found


def _on_scheduler_class(_config: Any, scheduler_class: type, *_args: Any, **_kwargs: Any) -> None:
    owner = next(c for c in scheduler_class.__mro__ if "update_from_output" in vars(c))
    wrap(owner, "update_from_output", v1_column.taken_before)


def _on_scheduler_built(scheduler: Any, _result: None, *_args: Any, **_kwargs: Any) -> None:
    recording = open_for(scheduler, options())
    serve(Switch(V1Engine(scheduler, watch, unwatch), recording))


def _on_preprocess(core: Any, _result: Any, request: Any) -> None:
    # runs in the input thread, before the scheduler sees the request; Request itself drops the caller's id
    recording = _of(core)
    if recording is not None:
        external = request.external_req_id  # an empty one is one
        recording.session.append(Named(request.request_id, request.request_id if external is None else external))


def _on_request(scheduler: Any, _result: None, request: Any) -> None:
    recording = _of(scheduler)
    if recording is not None and scheduler.requests.get(request.request_id) is request:
        recording.admit(request, first=len(scheduler.requests) == 1)


def _schedule(original: Callable[..., Any], hook: Hook) -> Callable[..., Any]:
    def schedule(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(self, *args, **kwargs)
        recording = getattr(self, PLACE, None)
        if recording is not None and hook.active and output.total_num_scheduled_tokens:
            try:
                recording.on_schedule(self, output)
            except BaseException as error:
                failed("schedule", error)
        return output

    return schedule


def _update_from_output(original: Callable[..., Any], hook: Hook) -> Callable[..., Any]:
    # the names are vLLM's, so that it may also be called with keywords
    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        recording = getattr(self, PLACE, None) if hook.active else None
        column = None
        try:  # also without a recording: a worker may still send it
            column = v1_column.take(model_runner_output)
        except BaseException as error:
            failed("update_from_output", error)
        if recording is None:
            return original(self, scheduler_output, model_runner_output)
        try:
            recording.join(scheduler_output)
        except BaseException as error:
            failed("update_from_output", error)
        ids = model_runner_output.sampled_token_ids
        if recording.copies_sampled and ids:
            ids = [list(row) for row in ids]
        outputs = original(self, scheduler_output, model_runner_output)
        try:
            recording.on_output(scheduler_output, outputs, ids, model_runner_output, column)
        except BaseException as error:
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
    recording.finished(Finished(ended, reason, recording.engine_step, time.monotonic_ns()))


def _shutdown(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    recording = _of(self)
    if recording is not None:
        # deliver before the executor goes down: the parent may kill us while it does
        never_raise(recording.close)(CLOSE_SECS)
    return original(self, *args, **kwargs)
