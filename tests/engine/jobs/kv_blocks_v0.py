"""Prefix hits of V0's LLMEngine under weights that change between and within requests, with too few KV blocks.

kv_blocks_v0.py MODEL OUT.json: writes what each hit found, as the KV memory and vLLM's own tracker of hits show it,
and whether the model is freed once nobody has the engine.
"""

import gc
import json
import sys
import weakref
from pathlib import Path

from vllm import EngineArgs, LLMEngine, SamplingParams

sys.path.insert(0, str(Path(__file__).parent))
from kv_memory import Memory

NUM_BLOCKS = 44
SHARED = [700 + j for j in range(72)]


def multiply(worker, factor):
    model = worker.get_model().model
    model.layers[0].input_layernorm.weight.data.mul_(factor)


def watch(engine):
    """Note at each forward what those who begin in it found cached; no prompt is computed in chunks here."""
    worker = engine.model_executor.driver_worker.worker
    tracker = engine.scheduler[0].block_manager._computed_blocks_tracker
    memory, execute, num_cached = Memory(worker.cpu_cache[0][0], NUM_BLOCKS), worker.execute_model, {}
    look_up = tracker.get_num_cached_tokens
    hits, forwards = [], []

    def get_num_cached_tokens(sequence):
        num_cached[sequence.seq_id] = look_up(sequence)
        return num_cached[sequence.seq_id]

    def execute_model(execute_model_req=None):
        if execute_model_req is None:
            return execute(None)
        scale = float(worker.get_model().model.layers[0].input_layernorm.weight[0])
        forwards.append(scale)
        version = list(dict.fromkeys(forwards)).index(scale)
        found = []
        for part in execute_model_req.seq_group_metadata_list:
            ((seq_id, table),) = part.block_tables.items()
            length = part.seq_data[seq_id].get_len()
            if part.is_prompt and num_cached[seq_id]:
                # of a prompt that is cached whole the last token is computed again
                count = min(num_cached[seq_id], length - 1)
                found.append([part.request_id, count, table[: -(-count // 16)]])
        # what is cached was computed before, but for that last token
        hits.extend([*hit, [memory.versions(block) for block in hit[2]]] for hit in found)
        memory.before()
        output = execute(execute_model_req)
        memory.after(version)
        return output

    tracker.get_num_cached_tokens = get_num_cached_tokens
    worker.execute_model = execute_model
    return hits, forwards


def main(model):
    args = {"max_model_len": 256, "max_num_seqs": 8, "enforce_eager": True, "seed": 0, "block_size": 16}
    args |= {"dtype": "float32", "enable_prefix_caching": True, "num_gpu_blocks_override": NUM_BLOCKS}
    engine = LLMEngine.from_engine_args(EngineArgs(model=model, **args))
    hits, forwards = watch(engine)
    ids = {}

    def change(factor):
        engine.collective_rpc(multiply, args=(factor,))

    def add(name, prompt, num_tokens):
        params = SamplingParams(temperature=0, logprobs=0, max_tokens=num_tokens, ignore_eos=True)
        engine.add_request(name, {"prompt_token_ids": prompt}, params)

    def finish(changes=()):
        num_steps = 0
        while engine.has_unfinished_requests():
            if num_steps in changes:
                change(1.5)
            for output in engine.step():
                ids[output.request_id] = list(output.outputs[0].token_ids)
            num_steps += 1

    def one(name, prompt, num_tokens=8, changes=()):
        add(name, prompt, num_tokens)
        finish(changes)

    one("first", SHARED)
    one("warm", SHARED)
    one("whole", SHARED[:64])
    change(1.5)
    one("stale", SHARED)
    one("stale-whole", SHARED[:64])
    one("rewritten", SHARED)
    one("half", SHARED[40:], 40, changes=(5,))
    one("mixed", SHARED[40:] + ids["half"])
    assert engine.reset_prefix_cache()
    one("cold", SHARED)
    one("warm-again", SHARED)
    for i in range(5):
        add(f"r{i}", [100 + 9 * i + j for j in range(120)], 40)
    finish(changes=(8, 20))
    return weakref.ref(engine.model_executor.driver_worker.worker.get_model()), {
        "hits": hits,
        "num_versions": len(set(forwards)),
    }


if __name__ == "__main__":
    model, truth = main(sys.argv[1])
    gc.collect()
    with open(sys.argv[2], "w") as file:
        json.dump({**truth, "freed": model() is None}, file)
