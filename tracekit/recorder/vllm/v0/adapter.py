"""vLLM V0 (0.8.5): class-level wraps, in the process that holds the LLMEngine.

`SchedulerContext.append_output` is called once a step, after the forward and before the next schedule, by the sync, the
async and the multiprocessing engine alike; the driver worker's `execute_model` is where a step meets its weights
(vllm/engine/llm_engine.py, vllm/engine/async_llm_engine.py, vllm/worker/worker_base.py).
"""

import importlib.util
import sys
import time
from collections.abc import Callable
from typing import Any

from tracekit.recorder.guard import failed, never_raise, say_once
from tracekit.recorder.session import Session, new_engine_id
from tracekit.recorder.settings import daemon_address, logprobs_complaint, logprobs_option
from tracekit.recorder.vllm import control, worker
from tracekit.recorder.vllm.calls import method_name, noted, watch_loads
from tracekit.recorder.vllm.describe import engine_row
from tracekit.recorder.vllm.hooks import after, wrap
from tracekit.recorder.vllm.recording import BY_REQUEST
from tracekit.recorder.vllm.recording import Recording as BaseRecording
from tracekit.recorder.vllm.snapshot import jsonable, vllm_version
from tracekit.recorder.vllm.v0 import sampler as v0_sampler
from tracekit.recorder.vllm.v0.blocks import Moves
from tracekit.recorder.vllm.v0.rows import Dispatch, V0Rows

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
    """Name what this vLLM lacks of what the adapter relies on; empty when nothing is missing."""
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


class V0Adapter:
    """Wraps the classes once per process; every engine made afterwards gets a recording of its own."""

    kind = "v0"

    def attach(self) -> None:
        """Wrap engine, scheduler, executors and worker; idempotent, opens nothing until an engine is built."""
        if (
            getattr(getattr(sys.modules["__main__"], "__spec__", None), "name", "")
            == "vllm.model_executor.models.registry"
        ):
            return  # the short-lived process that looks at the model's class
        from vllm.core.scheduler import Scheduler
        from vllm.engine.arg_utils import EngineArgs
        from vllm.engine.llm_engine import LLMEngine, SchedulerContext
        from vllm.engine.multiprocessing.engine import MQLLMEngine
        from vllm.executor.executor_base import DistributedExecutorBase, ExecutorBase
        from vllm.executor.uniproc_executor import UniProcExecutor
        from vllm.worker.worker_base import LocalOrDistributedWorkerBase

        after(EngineArgs, "create_engine_config", _on_config)
        after(LLMEngine, "__init__", _on_engine_built)
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
        after(MQLLMEngine, "__init__", _on_server_built)
        wrap(MQLLMEngine, "cleanup", _cleanup)
        for name in CONTROL:
            wrap(LLMEngine, name, control.recorded(_of))


class Recording(BaseRecording):
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
        self.live[group.request_id] = group
        self.session.append(("requests", time.monotonic_ns(), group))

    def finished(self, group: Any) -> None:
        """Note that a request has come to its end, however it did."""
        if self.live.pop(group.request_id, None) is None:
            return
        (sequence,) = group.seqs
        reason = type(sequence.status).get_finished_reason(sequence.status) or "error"
        time_ns, num_tokens = time.monotonic_ns(), sequence.get_output_len()
        self.session.append(("finished", group.request_id, reason, self.engine_step, time_ns, num_tokens))


def _of(owner: Any) -> Recording | None:
    return getattr(owner, "_tracekit_recording", None)


def _on_config(_args: Any, _config: Any, *_a: Any, **_k: Any) -> None:
    from vllm import envs

    if envs.VLLM_USE_V1:
        say_once(
            f"the V1 engine of vLLM {vllm_version()} is not supported, its V0 engine (VLLM_USE_V1=0) is; "
            "recording is off, the engine is untouched"
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


def _on_engine_built(engine: Any, _result: None, *_args: Any, **_kwargs: Any) -> None:
    from tracekit.recorder.commands import Commands
    from tracekit.recorder.stream import Stream

    address = daemon_address()
    if address is None or _of(engine) is not None:
        return
    config = engine.vllm_config
    unsupported = _unsupported(config)
    if unsupported:
        say_once(f"{unsupported} is not recorded from a V0 engine; recording is off, the engine is untouched")
        return
    engine_id = new_engine_id()
    cache = config.cache_config
    stream = Stream(address, engine_id)
    if logprobs_complaint():
        say_once(logprobs_complaint())
    session = Session(V0Rows(cache.num_gpu_blocks or 0, cache.block_size, logprobs_option()), stream)
    recording = Recording(session)
    Commands(stream, session, recording.label)
    for owner in (engine, engine.model_executor, *engine.scheduler, *engine.scheduler_contexts):
        owner._tracekit_recording = recording
    session.append(("engines", _describe(engine_id, engine)))
    _watch_driver(recording, engine.model_executor)


def _watch_driver(recording: Recording, executor: Any) -> None:
    """Follow the driver's worker and its model, where they live in this process (Ray's do not)."""
    from vllm.worker.worker_base import LocalOrDistributedWorkerBase

    driver = getattr(getattr(executor, "driver_worker", None), "worker", None)
    if not isinstance(driver, LocalOrDistributedWorkerBase):
        return
    driver._tracekit_recording = recording
    recording.has_driver = True
    if logprobs_option() != "client":
        v0_sampler.attach(logprobs_option())
    recording.meet([worker.describe(driver)], lambda: [worker.fingerprint(driver)])
    watch_loads(recording, driver.get_model())


def _describe(engine_id: str, engine: Any) -> dict[str, Any]:
    resolved = {
        "scheduler_class": type(engine.scheduler[0]).__qualname__,
        "executor_class": type(engine.model_executor).__qualname__,
        "generation_config": jsonable(engine.generation_config_fields),
        "num_gpu_blocks": engine.vllm_config.cache_config.num_gpu_blocks,
    }
    return engine_row(engine_id, V0Adapter.kind, engine.vllm_config, "processed_logprobs", resolved)


def _on_request(engine: Any, group: Any, *_args: Any, **_kwargs: Any) -> None:
    recording = _of(engine)
    if recording is not None:
        recording.admitted(group)


def _on_schedule(scheduler: Any, result: Any, *_args: Any, **_kwargs: Any) -> None:
    recording = _of(scheduler)
    if recording is None:
        return
    recording.num_waiting = len(scheduler.waiting)
    recording.num_free_blocks = scheduler.block_manager.get_num_free_gpu_blocks()
    if not recording.has_driver:
        recording.dispatch()
    for group in result[1].ignored_seq_groups:  # longer than the model's maximum
        recording.finished(group)


def _execute_model(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    recording = _of(self)
    if recording is not None:
        try:
            recording.dispatch()
        except Exception as error:
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
    recording = _of(context)
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
    recording.session.append(("output", at, seq_group_metadata_list, outputs[0].outputs, time.monotonic_ns(), moved))


def _on_preempt(scheduler: Any, mode: Any, group: Any, *_args: Any, **_kwargs: Any) -> None:
    recording = _of(scheduler)
    if recording is not None:
        recording.session.append(("preempted", group.request_id, mode.name == "RECOMPUTE"))


def _on_freed(scheduler: Any, _result: None, *_args: Any, **_kwargs: Any) -> None:
    recording = _of(scheduler)
    if recording is None:
        return
    # the scheduler's own list of what has ended since its last schedule(): looking at each group costs a call apiece
    for request_id in scheduler._finished_requests_ids:
        group = recording.live.get(request_id)
        if group is not None:
            recording.finished(group)


def _abort(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    result = original(self, *args, **kwargs)
    recording = _of(self)
    if recording is not None:
        _on_abort(recording)
    return result


@never_raise
def _on_abort(recording: Recording) -> None:
    for group in [group for group in recording.live.values() if group.is_finished()]:
        recording.finished(group)


def _collective_rpc(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    return noted(_of(self), _on_rpc, original, self, *args, **kwargs)


def _on_rpc(
    recording: Recording, begin_ns: int, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None
) -> None:
    name = method_name(method)
    if name == "add_lora":
        recording.adapter(args[0], name, begin_ns)
    elif not name.startswith(HARMLESS_RPC):
        recording.changed(name, begin_ns, args, kwargs)


def _apply_model(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    return noted(_of(self), _on_apply_model, original, self, *args, **kwargs)


def _on_apply_model(recording: Recording, begin_ns: int, *args: Any, **kwargs: Any) -> None:
    recording.changed("apply_model", begin_ns, args, kwargs)


def _on_server_built(server: Any, _result: None, *_args: Any, **_kwargs: Any) -> None:
    recording = _of(server.engine)
    if recording is not None:
        recording.in_process = False


def _cleanup(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    recording = _of(self.engine)
    if recording is not None:
        # this process ends without running exit handlers
        never_raise(recording.close)(CLOSE_SECS)
    return original(self, *args, **kwargs)
