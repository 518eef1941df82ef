"""What workers that run do for a recording, turned on and off: methods that the engine core calls by name.

Logprobs that nobody asked for, and states at module boundaries. A sampler wrap sends a column along with a step, which
only the wrap of the scheduler takes off: workers are disarmed on the engine's thread before a recording ends, and the
scheduler's wrap stays until the output of every step has come.
"""

from __future__ import annotations

from typing import Any

from tracekit.recorder.guard import failed
from tracekit.recorder.vllm import hooks
from tracekit.recorder.vllm.probe import PURPOSE as PROBE
from tracekit.recorder.vllm.probe import leave
from tracekit.recorder.vllm.v1 import probe as v1_probe
from tracekit.recorder.vllm.v1 import probe2 as v1_probe2
from tracekit.recorder.vllm.v1 import sampler as v1_sampler
from tracekit.recorder.vllm.v1 import sampler2 as v1_sampler2

ARM, DISARM = "tracekit_arm", "tracekit_disarm"
_SAMPLING = ("vllm.v1.sample.", "vllm.v1.worker.gpu_input_batch", "vllm.v1.worker.gpu.sample.")


def add_to(worker_base: type) -> None:
    """Give vLLM's worker class the two methods; idempotent."""
    for name, method in ((ARM, arm), (DISARM, disarm)):
        hooks.add(worker_base, name, method)


def arm(worker: Any, logprobs: str, probe: str | None, sample: float) -> str:
    """Wrap what a recording needs in a worker that is there already; return what went wrong, or nothing.

    Args:
        worker: vLLM's.
        logprobs: whose are recorded, one of `settings.LOGPROBS`.
        probe: the folder for states; None: nothing is probed.
        sample: share of requests that are recorded.
    """
    try:
        if probe is not None:
            v1_probe.attach(probe, sample)
            v1_probe2.attach(probe, sample)
        return "" if logprobs == "client" else _arm_sampler(worker.model_runner, logprobs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _arm_sampler(runner: Any, logprobs: str) -> str:
    if missing := v1_sampler.missing_features():
        return f"this vLLM lacks {missing}"
    v1_sampler.attach(logprobs)
    v1_sampler2.attach(logprobs)
    if hasattr(getattr(runner, "sampler", None), "sampling_states"):
        v1_sampler2.adopt(runner.sampler, logprobs, runner.vllm_config)
    elif logprobs == "both":
        v1_sampler.adopt(runner.sampler)
    _refresh(runner)
    return ""


def disarm(worker: Any) -> str:
    """Take the wraps of sampler and model out of this process; return what went wrong, or nothing."""
    try:
        hooks.uninstall(keep=[hook for hook in hooks.installed() if not _is_armed(hook)])
        leave(worker.model_runner)
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


def _is_armed(hook: hooks.Hook) -> bool:
    module = str(getattr(hook.owner, "__module__", None) or hook.owner.__name__)
    return hook.purpose == PROBE or module.startswith(_SAMPLING)


def _refresh(runner: Any) -> None:
    """Let the batch that runs ask for what is asked for now; model runner 1 looks only when the batch changes."""
    batch = getattr(runner, "input_batch", None)
    metadata = getattr(batch, "sampling_metadata", None)
    if batch is not None and metadata is not None:
        metadata.max_num_logprobs = batch.max_num_logprobs
