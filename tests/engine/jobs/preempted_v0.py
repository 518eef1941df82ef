"""A seeded job on V0's LLMEngine with too few KV blocks for its requests, and weights that change on four paths.

preempted_v0.py MODEL OUT.json
"""

import json
import sys

import torch
from vllm import EngineArgs, LLMEngine, SamplingParams


def scale_norm(worker):
    model = worker.get_model().model
    model.norm.weight.data.mul_(1.01)
    model.layers[0].input_layernorm.weight.data.mul_(1.5)  # so that keys and values change


def main(model, out):
    # 5 requests of 120 + 40 tokens in 44 blocks of 16
    args = {
        "max_model_len": 256,
        "max_num_seqs": 8,
        "enforce_eager": True,
        "seed": 0,
        "block_size": 16,
        "dtype": "float32",
    }
    engine = LLMEngine.from_engine_args(EngineArgs(model=model, num_gpu_blocks_override=44, **args))
    for i in range(5):
        params = SamplingParams(temperature=0.8, top_k=50, seed=i, max_tokens=40, logprobs=0, ignore_eos=True)
        engine.add_request(f"r{i}", {"prompt_token_ids": [100 + 9 * i + j for j in range(120)]}, params)
    changed_after = []
    requests = {}
    num_steps = 0
    while engine.has_unfinished_requests():
        if num_steps == 7:
            engine.collective_rpc(scale_norm)
        if num_steps == 11:
            weights = engine.model_executor.driver_worker.worker.get_model()
            # many calls before the next forward are one change
            for scale in (1.5, 1.02):
                weights.load_weights([("model.norm.weight", torch.full(weights.model.norm.weight.shape, scale))])
        if num_steps == 15:
            engine.model_executor.apply_model(lambda m: m.model.norm.weight.data.mul_(0.99))
        if num_steps in (7, 11, 15):
            changed_after.append(num_steps)
        for output in engine.step():
            if output.finished:
                (completion,) = output.outputs
                pairs = zip(completion.token_ids, completion.logprobs, strict=True)
                logprobs = [float(row[t].logprob).hex() for t, row in pairs]
                requests[output.request_id] = {"token_ids": list(completion.token_ids), "logprobs": logprobs}
        num_steps += 1
    engine.reset_prefix_cache()
    engine.model_executor.driver_worker.worker.get_model().model.norm.weight.data.mul_(0.5)
    changed_after.append(num_steps)
    engine.add_request("late", {"prompt_token_ids": [7, 8, 9]}, SamplingParams(max_tokens=2, ignore_eos=True))
    while engine.has_unfinished_requests():
        engine.step()
    with open(out, "w") as file:
        json.dump({"requests": requests, "changed_after": changed_after}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
