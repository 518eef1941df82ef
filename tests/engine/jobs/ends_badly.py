"""A rollout that comes to a bad end in its second half: ends_badly.py MODEL HOW READY.

HOW is `core` (its engine core is killed), `worker` (a step raises), or `wait` (it runs until somebody ends it).
"""

import multiprocessing
import os
import sys
import threading
from pathlib import Path

from vllm import LLM, SamplingParams


def break_worker() -> None:
    """Let every step from the 20th raise what a CUDA kernel would."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    execute_model, left = GPUModelRunner.execute_model, iter(range(20))

    def failing(self, *args, **kwargs):
        if next(left, None) is None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return execute_model(self, *args, **kwargs)

    GPUModelRunner.execute_model = failing


if "worker" in sys.argv:
    break_worker()  # in the engine core too, which runs this file again

if __name__ == "__main__":
    model, how, ready = sys.argv[1:]
    llm = LLM(model=model, max_model_len=4096, enforce_eager=True, seed=0)
    params = SamplingParams(max_tokens=8, logprobs=0, ignore_eos=True)
    prompts = [{"prompt_token_ids": [1, 2, 3 + i]} for i in range(4)]
    llm.generate(prompts, params, use_tqdm=False)
    if how == "core":
        (core,) = multiprocessing.active_children()
        threading.Timer(2, core.kill).start()  # in the middle of the next call
    Path(ready).write_text(str(os.getpid()))
    llm.generate(prompts, SamplingParams(max_tokens=4000, logprobs=0, ignore_eos=True), use_tqdm=False)
