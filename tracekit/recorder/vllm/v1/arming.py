"""Logprobs that nobody asked for, turned on and off in workers that run: methods that the engine core calls by name.

A sampler wrap sends a column along with a step, which only the wrap of the scheduler takes off: workers are disarmed on
the engine's thread before a recording ends, and the scheduler's wrap stays until the output of every step has come.
"""

from __future__ import annotations

from typing import Any

from tracekit.recorder.guard import failed
from tracekit.recorder.vllm import hooks
from tracekit.recorder.vllm.v1 import sampler as v1_sampler
from tracekit.recorder.vllm.v1 import sampler2 as v1_sampler2

ARM, DISARM = "tracekit_arm", "tracekit_disarm"
_SAMPLING = ("vllm.v1.sample.", "vllm.v1.worker.gpu_input_batch", "vllm.v1.worker.gpu.sample.")


def add_to(worker_base: type) -> None:
    """Give vLLM's worker class the two methods; idempotent."""
    for name, method in ((ARM, arm), (DISARM, disarm)):
        hooks.add(worker_base, name, method)


def arm(worker: Any, option: str) -> str:
    """Wrap the sampler of a worker that is there already; return what went wrong, or nothing."""
    try:
        v1_sampler.attach(option)
        v1_sampler2.attach(option)
        runner = worker.model_runner
        if hasattr(getattr(runner, "sampler", None), "sampling_states"):
            v1_sampler2.adopt(runner.sampler, option, runner.vllm_config)
        elif option == "both":
            v1_sampler.adopt(runner.sampler)
        _refresh(runner)
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def disarm(worker: Any) -> str:
    """Take the wraps of the sampler out of this process; return what went wrong, or nothing."""
    try:
        hooks.uninstall(keep=[hook for hook in hooks.installed() if not _module_of(hook.owner).startswith(_SAMPLING)])
        _refresh(worker.model_runner)
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def call(executor: Any, method: str, *args: Any) -> str:
    """Call one of them in all workers, on the engine's thread; return what went wrong, or nothing."""
    try:
        answers = executor.collective_rpc(method, args=args)
    except Exception as error:
        failed(method, error)
        return str(error)
    return next((answer for answer in answers if answer), "")


def _module_of(owner: Any) -> str:
    return str(getattr(owner, "__module__", None) or owner.__name__)


def _refresh(runner: Any) -> None:
    """Let the batch that runs ask for what is asked for now; model runner 1 looks only when the batch changes."""
    batch = getattr(runner, "input_batch", None)
    metadata = getattr(batch, "sampling_metadata", None)
    if batch is not None and metadata is not None:
        metadata.max_num_logprobs = batch.max_num_logprobs
