"""Prefix hits before and after a reload, pauses that clear the cache and that do not, preemptions, n > 1, an abort.

stale_hits.py MODEL VIEW.jsonl: runs AsyncLLM, writes the client's view as `tracekit.jobs.rollout` does.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file
from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

ROWS = {}
PROMPT = [i % 900 + 300 for i in range(72)]


def note(name, token_ids, completion, prompt_logprobs):
    row = ROWS.setdefault(
        (name, completion.index),
        {"request_id": name, "index": completion.index, "prompt_token_ids": token_ids, "token_ids": [], "logprobs": []},
    )
    row["token_ids"] += completion.token_ids
    row["logprobs"] += [at[t].logprob for at, t in zip(completion.logprobs, completion.token_ids, strict=True)]
    row["finish_reason"] = completion.finish_reason
    if prompt_logprobs:  # come once, with the first token
        assert "prompt_logprobs" not in row
        row["prompt_logprobs"] = [at and next(iter(at.values())).logprob for at in prompt_logprobs]


async def ask(engine, name, token_ids, started=None, abort_after=None, **fields):
    params = SamplingParams(
        **{"temperature": 0.7, "logprobs": 0, "max_tokens": 8, "ignore_eos": True, **fields},
        output_kind=RequestOutputKind.DELTA,
    )
    async for output in engine.generate({"prompt_token_ids": token_ids}, params, request_id=name):
        for completion in output.outputs:
            note(name, token_ids, completion, output.prompt_logprobs)
            if started and len(ROWS[name, 0]["token_ids"]) >= 4:
                started.set()
            if abort_after and len(ROWS[name, 0]["token_ids"]) >= abort_after:
                return


def changed_copy(model, folder):
    """The model with other keys and values."""
    copy = shutil.copytree(model, Path(folder) / "changed")
    for path in copy.glob("*.safetensors"):
        tensors = load_file(path)
        save_file({n: t * 1.25 if "input_layernorm" in n else t for n, t in tensors.items()}, path, {"format": "pt"})
    return str(copy)


async def reload(engine, path):
    await engine.collective_rpc("reload_weights", kwargs={"weights_path": path})


async def half_and_half(engine, model):
    """A rollout under way when the weights change, paused with its cache kept; then another goes on from it."""
    started = asyncio.Event()
    running = asyncio.create_task(ask(engine, "half", PROMPT[30:], started, max_tokens=30))
    await started.wait()
    await engine.pause_generation(mode="keep", clear_cache=False)
    await reload(engine, model)
    await engine.resume_generation()
    await running
    await ask(engine, "mixed", PROMPT[30:] + ROWS["half", 0]["token_ids"])


async def main(model, view):
    args = {"max_model_len": 256, "max_num_batched_tokens": 64, "block_size": 32, "num_gpu_blocks_override": 24}
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, enforce_eager=True, seed=0, **args))
    await ask(engine, "first", PROMPT)
    await ask(engine, "warm", PROMPT)
    with tempfile.TemporaryDirectory() as folder:
        await reload(engine, changed_copy(model, folder))
    await ask(engine, "stale", PROMPT)
    started = asyncio.Event()
    running = [
        asyncio.create_task(ask(engine, f"paused-{i}", [50 + i, *PROMPT[:40]], started, max_tokens=24))
        for i in range(2)
    ]
    await started.wait()
    await engine.pause_generation(mode="keep")
    await engine.resume_generation()
    await asyncio.gather(*running)
    await ask(engine, "cold", PROMPT)
    await half_and_half(engine, model)
    asked = (None, 0, 2)
    many = [ask(engine, f"many-{i}", [i + 5, *PROMPT], max_tokens=90, prompt_logprobs=asked[i % 3]) for i in range(8)]
    many += [
        ask(engine, "children", PROMPT[:20], n=2, prompt_logprobs=1),
        ask(engine, "abort", [9, 9, 9], abort_after=5, max_tokens=200),
    ]
    await asyncio.gather(*many)
    engine.shutdown()
    with open(view, "w") as file:
        file.writelines(json.dumps({"request": n, **row}) + "\n" for n, row in enumerate(ROWS.values()))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
