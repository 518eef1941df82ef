"""Engines in Ray actors that are ended as trainers end them: ray_actor.py MODEL OUT.json PAUSE_SECS.

OUT.json gets the token ids that the driver received, actor by actor. The first is killed, the last goes down with Ray,
each so many seconds after its generate().
"""

import json
import sys
import time
from pathlib import Path

import ray


@ray.remote(num_cpus=1)
class Rollouts:
    """An engine, and what a trainer asks of it."""

    def __init__(self, model):
        from vllm import LLM

        self.llm = LLM(model=model, max_model_len=256, enforce_eager=True, seed=0)

    def generate(self, num_prompts):
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=8, logprobs=0, ignore_eos=True, detokenize=False)
        prompts = [{"prompt_token_ids": [1, 2, 3 + i]} for i in range(num_prompts)]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


if __name__ == "__main__":
    model, out, pause_secs = sys.argv[1:]
    ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=80 << 20)
    actors = [Rollouts.remote(model) for _ in range(2)]
    received = []
    for actor in actors:
        received.append(ray.get(actor.generate.remote(3)))
        time.sleep(float(pause_secs))
        if actor is actors[0]:
            ray.kill(actor)
    ray.shutdown()
    Path(out).write_text(json.dumps(received))
