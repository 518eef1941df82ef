"""Async scheduling, which CPU builds switch off, with vLLM's own scheduler, engine core and model runner.

A job calls `allow` at import: vLLM spawns its processes, and each of them imports the job's main module again. Replaced
are the platform's refusal and what needs a device: the copy to the host on a stream of its own, and the thread that
waits for it. A step's output is never there before the engine asks for it, as on a device that is always busy.
"""

from concurrent.futures import Future


class _HostOutput:
    """vLLM's AsyncGPUModelRunnerOutput without a stream; its own `get_output` makes the lists."""

    def __init__(self, model_runner_output, sampled_token_ids, logprobs_tensors, invalid_req_indices, vocab_size, **_):
        self._model_runner_output = model_runner_output
        self._invalid_req_indices = invalid_req_indices
        self.vocab_size = vocab_size
        # the next step's forward must not reach what this step sampled
        self._sampled_token_ids = self.sampled_token_ids_cpu = sampled_token_ids.clone()
        self._logprobs_tensors = self._logprobs_tensors_cpu = logprobs_tensors
        self._num_nans = self._num_nans_cpu = self._has_fault = None
        self.async_copy_ready_event = self

    def synchronize(self):
        """Nothing to wait for: the copy is done."""


class _Late(Future):
    """Not done before somebody waits for it."""

    def __init__(self, work):
        super().__init__()
        self._work = work

    def result(self, timeout=None):
        if not self.done():
            self.set_result(self._work())
        return super().result(timeout)


class _LateThread:
    """Stands for the one thread that waits for outputs."""

    def __init__(self, *_args, **_kwargs):
        pass

    def submit(self, work):
        return _Late(work)


def allow():
    """Let `async_scheduling=True` be; engines that do not ask for it stay as they are."""
    from vllm.platforms.cpu import CpuPlatform
    from vllm.v1.executor import uniproc_executor
    from vllm.v1.outputs import AsyncModelRunnerOutput
    from vllm.v1.worker import gpu_model_runner

    refuse = CpuPlatform.check_and_update_config.__func__

    def check_and_update_config(cls, vllm_config):
        asked = vllm_config.scheduler_config.async_scheduling
        refuse(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = asked

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
    real = gpu_model_runner.AsyncGPUModelRunnerOutput
    fields = {**vars(_HostOutput), "get_output": real.get_output}
    gpu_model_runner.AsyncGPUModelRunnerOutput = type("HostOutput", (AsyncModelRunnerOutput,), fields)
    if hasattr(uniproc_executor, "ThreadPoolExecutor"):
        uniproc_executor.ThreadPoolExecutor = _LateThread
