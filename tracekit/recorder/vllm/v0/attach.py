"""vLLM V0 (0.8.5): class-level wraps, in the process that holds the LLMEngine.

`SchedulerContext.append_output` is called once per step, after the forward and before the next schedule, by the sync,
the async and the multiprocessing engine alike; the driver worker's `execute_model` is where a step meets its weights
(vllm/engine/llm_engine.py, vllm/engine/async_llm_engine.py, vllm/worker/worker_base.py).
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from typing import Any

from tracekit.recorder.desk import serve
from tracekit.recorder.guard import failed, never_raise, say_off
from tracekit.recorder.settings import Options, options
from tracekit.recorder.vllm import control, worker
from tracekit.recorder.vllm.calls import method_name, noted, watch_loads
from tracekit.recorder.vllm.events import Dispatch, Moves, Preempted, Step
from tracekit.recorder.vllm.hooks import Hook, after, installed, uninstall, wrap
from tracekit.recorder.vllm.opening import recording_of
from tracekit.recorder.vllm.snapshot import vllm_version
from tracekit.recorder.vllm.switch import Switch
from tracekit.recorder.vllm.v0 import probe as v0_probe
from tracekit.recorder.vllm.v0 import sampler as v0_sampler
from tracekit.recorder.vllm.v0.engine import SERVED, V0Engine
from tracekit.recorder.vllm.v0.recording import V0Recording, open_for

_birth: list[Hook] = []  # what is there from the start, and stays

CLOSE_SECS = 2.0  # the API server kills its engine process four seconds after asking it to end

# RPCs to the workers that leave the weights alone; any other name may change them
HARMLESS_RPC = (
    *("get_", "list_", "check_", "save_", "is_", "init", "profile", "report_", "execute_", "determine_", "start_"),
    *("stop_", "sleep", "remove_lora", "pin_", "add_prompt", "remove_prompt"),
)
CONTROL = ("reset_prefix_cache", "sleep", "wake_up", "abort_request", "add_lora", "remove_lora")


def is_installed() -> bool:
    """Whether this vLLM has the V0 engine's scheduler."""
    try:
        return importlib.util.find_spec("vllm.core.scheduler") is not None
    except ModuleNotFoundError:
        return False


def missing_features() -> str:
    """Name what this vLLM lacks of what the hooks rely on; empty when nothing is missing."""
    try:
        from vllm.core.scheduler import Scheduler
        from vllm.engine import llm_engine
        from vllm.worker.worker_base import LocalOrDistributedWorkerBase
    except Exception as error:
        return f"the V0 engine: {error}"
    engine, context = llm_engine.LLMEngine, getattr(llm_engine, "SchedulerContext", None)
    if engine.__module__ != llm_engine.__name__:
        return "the V0 engine, which VLLM_USE_V1=0 chooses"
    needs = {
        "SchedulerContext.append_output": hasattr(context, "append_output"),
        "LLMEngine._create_sequence_group_with_sampling": hasattr(engine, "_create_sequence_group_with_sampling"),
        "Scheduler._preempt": hasattr(Scheduler, "_preempt"),
        "Scheduler.free_finished_seq_groups": hasattr(Scheduler, "free_finished_seq_groups"),
        "LocalOrDistributedWorkerBase.execute_model": hasattr(LocalOrDistributedWorkerBase, "execute_model"),
    }
    return ", ".join(name for name, there in needs.items() if not there)


def attach() -> None:
    """Be there when an engine is built; idempotent, opens nothing before that.

    Every engine made afterwards gets a recording of its own where a daemon is named. Elsewhere no step runs through
    anything of ours until it is attached to.
    """
    from vllm.engine.llm_engine import LLMEngine
    from vllm.engine.multiprocessing.engine import MQLLMEngine

    after(LLMEngine, "__init__", _on_engine_built)
    after(MQLLMEngine, "__init__", _on_server_built)
    if not _birth:
        _birth.extend(installed())
    told = options()
    if told is not None:
        watch(told)


def watch(told: Options) -> None:
    """Wrap engine, scheduler, executors and worker; idempotent."""
    from vllm.core.scheduler import Scheduler
    from vllm.engine.arg_utils import EngineArgs
    from vllm.engine.llm_engine import LLMEngine, SchedulerContext
    from vllm.engine.multiprocessing.engine import MQLLMEngine
    from vllm.executor.executor_base import DistributedExecutorBase, ExecutorBase
    from vllm.executor.uniproc_executor import UniProcExecutor
    from vllm.worker.worker_base import LocalOrDistributedWorkerBase

    after(EngineArgs, "create_engine_config", _on_config)
    after(LLMEngine, "_create_sequence_group_with_sampling", _on_request)
    after(Scheduler, "schedule", _on_schedule)
    after(SchedulerContext, "append_output", _on_output)
    after(Scheduler, "_preempt", _on_preempt)
    after(Scheduler, "free_finished_seq_groups", _on_freed)
    wrap(Scheduler, "abort_seq_group", _abort)
    wrap(LocalOrDistributedWorkerBase, "execute_model", _execute_model)
    wrap(DistributedExecutorBase, "collective_rpc", _collective_rpc)
    wrap(UniProcExecutor, "collective_rpc", _collective_rpc)
    wrap(ExecutorBase, "apply_model", _apply_model)
    wrap(MQLLMEngine, "cleanup", _cleanup)
    for name in CONTROL:
        wrap(LLMEngine, name, control.recorded(recording_of))
    if told.probe is not None:
        v0_probe.attach(told.probe, told.sample)


def unwatch() -> None:
    """Take out what a recording needs: the engine's methods stand where they stood."""
    uninstall(keep=_birth)


def _on_config(_args: Any, _config: Any, *_a: Any, **_k: Any) -> None:
    from vllm import envs

    if envs.VLLM_USE_V1:
        say_off(f"the V1 engine of vLLM {vllm_version()} is not supported, its V0 engine (VLLM_USE_V1=0) is")


def _on_engine_built(engine: Any, _result: None, *_args: Any, **_kwargs: Any) -> None:
    told = options()
    recording = open_for(engine, told)
    if recording is not None and told is not None:
        _watch_driver(recording, engine.model_executor, told)
    serve(Switch(V0Engine(engine, watch, unwatch, _watch_driver), recording))


def _watch_driver(recording: V0Recording, executor: Any, told: Options) -> None:
    """Follow the driver's worker and its model, where they live in this process (Ray's do not)."""
    from vllm.worker.worker_base import LocalOrDistributedWorkerBase

    driver = getattr(getattr(executor, "driver_worker", None), "worker", None)
    if not isinstance(driver, LocalOrDistributedWorkerBase):
        return
    recording.hang_on(driver)
    recording.has_driver = True
    if told.logprobs != "client":
        v0_sampler.attach(told.logprobs)
    recording.meet([worker.describe(driver)], driver, lambda driver: [worker.fingerprint(driver)])
    watch_loads(recording, driver.get_model())


def _on_request(engine: Any, group: Any, *_args: Any, **_kwargs: Any) -> None:
    recording = recording_of(engine)
    if recording is not None:
        recording.admitted(group)


def _on_schedule(scheduler: Any, result: Any, *_args: Any, **_kwargs: Any) -> None:
    recording = recording_of(scheduler)
    if recording is None:
        return
    recording.num_waiting = len(scheduler.waiting)
    recording.num_free_blocks = scheduler.block_manager.get_num_free_gpu_blocks()
    if not recording.has_driver:
        recording.dispatch()
    for group in result[1].ignored_seq_groups:  # longer than the model's maximum
        recording.finished(group)


def _execute_model(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    recording = recording_of(self)
    if recording is not None:
        try:
            recording.dispatch()
        except BaseException as error:
            failed("execute_model", error)
    return original(self, *args, **kwargs)


def _on_output(
    context: Any,
    _result: None,
    outputs: Any,
    seq_group_metadata_list: Any,
    scheduler_outputs: Any,
    *_args: Any,
    **_kwargs: Any,
) -> None:
    recording = recording_of(context)
    if recording is None:
        return
    moves = (
        scheduler_outputs.blocks_to_swap_in,
        scheduler_outputs.blocks_to_swap_out,
        scheduler_outputs.blocks_to_copy,
    )
    if any(moves):
        recording.moves.append(Moves(*moves))
    if not seq_group_metadata_list:
        return
    at = Dispatch(
        recording.engine_step,
        recording.time_ns,
        recording.weight_version,
        recording.num_waiting,
        recording.num_free_blocks,
    )
    recording.engine_step += 1
    moved, recording.moves = recording.moves, []
    sampled = outputs[0].outputs
    recording.session.append(Step(at, seq_group_metadata_list, sampled, time.monotonic_ns(), moves=moved))
    recording.wait()


def _on_preempt(scheduler: Any, mode: Any, group: Any, *_args: Any, **_kwargs: Any) -> None:
    recording = recording_of(scheduler)
    if recording is not None:
        recording.session.append(Preempted(group.request_id, mode.name == "RECOMPUTE"))


def _on_freed(scheduler: Any, _result: None, *_args: Any, **_kwargs: Any) -> None:
    recording = recording_of(scheduler)
    if recording is None:
        return
    # the scheduler's own list of what has ended since its last schedule(): looking at each group costs a call per group
    for request_id in scheduler._finished_requests_ids:
        group = recording.live.get(request_id)
        if group is not None:
            recording.finished(group)


def _abort(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(self, *args, **kwargs)
    recording = recording_of(self)
    if recording is not None:
        _on_abort(recording)
    return result


@never_raise
def _on_abort(recording: V0Recording) -> None:
    for group in [group for group in recording.live.values() if group.is_finished()]:
        recording.finished(group)


def _collective_rpc(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    return noted(recording_of(self), _on_rpc, original, self, *args, **kwargs)


def _on_rpc(
    recording: V0Recording, begin_ns: int, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None
) -> None:
    name = method_name(method)
    if name == "add_lora":
        recording.adapter(args[0], name, begin_ns)
    elif not name.startswith(HARMLESS_RPC):
        recording.changed(name, begin_ns, args, kwargs)


def _apply_model(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    return noted(recording_of(self), _on_apply_model, original, self, *args, **kwargs)


def _on_apply_model(recording: V0Recording, begin_ns: int, *args: Any, **kwargs: Any) -> None:
    recording.changed("apply_model", begin_ns, args, kwargs)


def _on_server_built(server: Any, _result: None, *_args: Any, **_kwargs: Any) -> None:
    setattr(server.engine, SERVED, True)
    recording = recording_of(server.engine)
    if recording is not None:
        recording.in_process = False


def _cleanup(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    recording = recording_of(self.engine)
    if recording is not None:
        # this process ends without running exit handlers
        never_raise(recording.close)(CLOSE_SECS)
    return original(self, *args, **kwargs)
