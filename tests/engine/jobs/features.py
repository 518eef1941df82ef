"""A mixture of experts, LoRA adapters under one name, and n-gram speculation: an engine each, all in one process.

features.py FOLDER: finds the models in FOLDER/{tiny,moe,adapter-a,adapter-b}; writes FOLDER/view.jsonl as
`tracekit.jobs.rollout` does, and FOLDER/truth.json, what vLLM itself counted.
"""

import json
import os
import sys
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import EngineArgs, LLMEngine, SamplingParams
from vllm.lora.request import LoRARequest

sys.path.insert(0, str(Path(__file__).parent))
import spec_cpu

ROWS = []
ARGS = {"max_model_len": 256, "enforce_eager": True, "seed": 0, "block_size": 32, "num_gpu_blocks_override": 64}
PROMPT = [(7 * i) % 900 + 300 for i in range(72)]


def build(model, **more):
    return LLMEngine.from_engine_args(EngineArgs(model=str(model), **ARGS, **more))


def ask(engine, prompts, **more):
    """Run {name: (prompt, adapter)} together; return how many tokens of each prompt came from the cache."""
    params = SamplingParams(**{"temperature": 0, "logprobs": 0, "max_tokens": 24, "ignore_eos": True, **more})
    for name, (prompt, adapter) in prompts.items():
        engine.add_request(name, {"prompt_token_ids": prompt}, params, lora_request=adapter)
    cached = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            if not output.finished:
                continue
            (completion,) = output.outputs
            pairs = zip(completion.logprobs, completion.token_ids, strict=True)
            ROWS.append(
                {
                    "request_id": output.request_id,
                    "index": 0,
                    "prompt_token_ids": output.prompt_token_ids,
                    "token_ids": list(completion.token_ids),
                    "logprobs": [at[token_id].logprob for at, token_id in pairs],
                    "finish_reason": completion.finish_reason,
                }
            )
            cached[output.request_id] = output.num_cached_tokens
    return cached


def experts(folder):
    prompts = {f"moe-{i}": ([i + 5, *PROMPT[: 9 + 20 * i]], None) for i in range(4)}
    ask(build(folder / "moe"), prompts, temperature=0.7, top_p=0.9, max_tokens=32)


def adapters(folder):
    engine = build(folder / "tiny", enable_lora=True, max_loras=2, max_lora_rank=8)
    first, second = str(folder / "adapter-a"), str(folder / "adapter-b")
    cached = ask(engine, {"base": (PROMPT, None)})
    cached |= ask(engine, {"x": (PROMPT, LoRARequest("x", 1, first))})
    cached |= ask(engine, {"x-again": (PROMPT, LoRARequest("x", 1, first))})
    cached |= ask(engine, {"x-moved": (PROMPT, LoRARequest("x", 2, second))})
    cached |= ask(engine, {"y": (PROMPT, LoRARequest("y", 3, second))})
    return {"cached": cached}


def drafts(folder):
    spec_cpu.allow()
    how = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    engine = build(folder / "tied", speculative_config=how, disable_log_stats=False)
    ask(engine, {f"spec-{i}": (PROMPT[5 * i : 5 * i + 4] * 4, None) for i in range(4)}, max_tokens=90)
    names = ("num_drafts", "num_draft_tokens", "num_accepted_tokens")
    return {m.name.removeprefix("vllm:spec_decode_"): m.value for m in engine.get_metrics() if m.name.endswith(names)}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    experts(folder)
    # the last one: n-gram speculation loads numba, with which 0.32 cannot build another engine
    truth = {"lora": adapters(folder), "spec": drafts(folder)}
    (folder / "truth.json").write_text(json.dumps(truth))
    lines = [json.dumps({"request": number, **row}) + "\n" for number, row in enumerate(ROWS)]
    (folder / "view.jsonl").write_text("".join(lines))
