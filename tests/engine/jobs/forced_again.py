"""Rollouts that a re-run must repeat to the bit, and rollouts whose KV was changed behind the engine's back.

forced_again.py MODEL OTHER FOLDER: OTHER holds weights that are loaded in flight; writes FOLDER/truth.json: the first
output token of each request that was computed over changed KV.
"""

import json
import os
import sys
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import EngineArgs, LLMEngine, SamplingParams

ARGS = {"max_model_len": 256, "max_num_batched_tokens": 64, "block_size": 32, "num_gpu_blocks_override": 16}
PROMPT = [i % 900 + 300 for i in range(72)]
NUM_STEPS = 10  # before something happens in flight


class Job:
    """One engine, stepped by hand."""

    def __init__(self, model):
        self.engine = LLMEngine.from_engine_args(EngineArgs(model=model, enforce_eager=True, seed=0, **ARGS))
        self.core = self.engine.engine_core.engine_core
        self.firsts = {}

    def add(self, name, prompt, **fields):
        params = {"temperature": 1.0, "logprobs": 0, "max_tokens": 24, "ignore_eos": True, **fields}
        self.engine.add_request(name, {"prompt_token_ids": prompt}, SamplingParams(**params))

    def step(self, count=10**9):
        while count and self.engine.has_unfinished_requests():
            self.engine.step()
            count -= 1

    def running(self, name):
        return next(r for r in self.core.scheduler.running if r.request_id.startswith(name))

    def change_kv(self, block):
        """What a race, or a connector that loads the wrong block, would leave."""
        for cache in self.core.model_executor.driver_worker.worker.model_runner.kv_caches:
            cache.select(cache.shape.index(ARGS["num_gpu_blocks_override"]), block).mul_(1.5)

    def block_of(self, name):
        return self.core.scheduler.kv_cache_manager.get_block_ids(self.running(name).request_id)[0][0]


def clean(job):
    """Chunks, hits, preemptions, n > 1, and every sampling parameter that moves logprobs."""
    job.add("first", PROMPT)
    job.step()
    job.add("warm", PROMPT, n=2)
    job.add("nucleus", [7, *PROMPT], temperature=0.7, top_p=0.9, max_tokens=60)
    job.add("penalties", [8, *PROMPT], repetition_penalty=1.2, presence_penalty=0.5, top_k=20, max_tokens=60)
    job.add("greedy", [9, *PROMPT], temperature=0, max_tokens=60)
    job.add("min_p", [10, *PROMPT], min_p=0.05, logit_bias={77: 2.0}, max_tokens=60)
    job.step()


def updated(job, other, model, cleared):
    """Weights that change under running requests, whose KV is kept or computed again."""
    for i in range(2):
        job.add(f"{'cleared' if cleared else 'kept'}-{i}", [20 + i, *PROMPT[:40]], temperature=0)
    job.step(NUM_STEPS)
    job.engine.collective_rpc("reload_weights", kwargs={"weights_path": other})
    if cleared:
        job.core.reset_prefix_cache(reset_running_requests=True)
    job.step()
    job.engine.collective_rpc("reload_weights", kwargs={"weights_path": model})
    assert job.core.reset_prefix_cache()


def changed(job):
    """KV that changes in mid-rollout, and in a block that a later request finds in the prefix cache."""
    for i in range(3):
        job.add(f"hurt-{i}" if i == 1 else f"well-{i}", [30 + i, *PROMPT[:40]])
    job.step(NUM_STEPS)
    job.firsts["hurt-1"] = len(job.running("hurt-1").output_token_ids)
    job.change_kv(job.block_of("hurt-1"))
    job.step()
    job.add("donor", [40, *PROMPT[:40]], max_tokens=4)
    job.step(2)
    block = job.block_of("donor")
    job.step()
    job.change_kv(block)
    job.add("stale", [40, *PROMPT[:40]])
    job.add("beside", [41, *PROMPT[:40]])
    job.firsts["stale"] = 0
    job.step()


if __name__ == "__main__":
    model, other, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    job = Job(model)
    clean(job)
    updated(job, other, model, cleared=False)
    updated(job, other, model, cleared=True)
    changed(job)
    (folder / "truth.json").write_text(json.dumps(job.firsts))
