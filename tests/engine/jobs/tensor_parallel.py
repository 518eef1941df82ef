"""Two CPU workers with half of the model each, and weights that change between two batches: V0 and V1.

tensor_parallel.py MODEL VIEW.jsonl: writes the client's view as `tracekit.jobs.rollout` does.
"""

import json
import os
import sys

# a core for each worker: vLLM's own choice asks for a NUMA node each
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # to send a function

import torch
from vllm import LLM, SamplingParams, _custom_ops
from vllm.distributed.device_communicators import cpu_communicator

assert _custom_ops  # its import registers what the build has
if not hasattr(torch.ops._C, "init_shm_manager"):
    # the build of 0.8.5 lacks its shared memory, and falls for it: what it takes on other machines
    cpu_communicator._CPUSHMDistributed = lambda _: torch.distributed


def scale_norm(worker):
    worker.get_model().model.norm.weight.data.mul_(1.5)


def main(model, view):
    args = {"max_model_len": 256, "max_num_seqs": 8, "enforce_eager": True, "seed": 0, "dtype": "float32"}
    llm = LLM(model=model, tensor_parallel_size=2, num_gpu_blocks_override=64, **args)
    params = SamplingParams(temperature=0.7, logprobs=0, max_tokens=12, ignore_eos=True)
    rows = []
    for batch in range(2):
        prompts = [{"prompt_token_ids": [100 * batch + 9 * i + j for j in range(5 + 30 * i)]} for i in range(3)]
        for output in llm.generate(prompts, params, use_tqdm=False):
            (completion,) = output.outputs
            pairs = zip(completion.logprobs, completion.token_ids, strict=True)
            rows.append(
                {
                    "request": len(rows),
                    "request_id": output.request_id,
                    "index": 0,
                    "prompt_token_ids": output.prompt_token_ids,
                    "token_ids": list(completion.token_ids),
                    "logprobs": [at[token_id].logprob for at, token_id in pairs],
                    "finish_reason": completion.finish_reason,
                }
            )
        if batch == 0:
            llm.collective_rpc(scale_norm)
    with open(view, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
