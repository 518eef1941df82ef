"""Prefix hits before and after a reload, a pause that clears the cache, preemptions, n > 1 and an abort, on AsyncLLM.

stale_hits.py MODEL VIEW.jsonl: writes the client's view as `tracekit.engines.rollout` does.
"""

import asyncio
import json
import sys

from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

ROWS = {}
PROMPT = [i % 900 + 300 for i in range(72)]


def note(name, token_ids, completion):
    row = ROWS.setdefault(
        (name, completion.index),
        {"request_id": name, "index": completion.index, "prompt_token_ids": token_ids, "token_ids": [], "logprobs": []},
    )
    row["token_ids"] += completion.token_ids
    row["logprobs"] += [at[t].logprob for at, t in zip(completion.logprobs, completion.token_ids, strict=True)]
    row["finish_reason"] = completion.finish_reason


async def ask(engine, name, token_ids, started=None, abort_after=None, **fields):
    params = SamplingParams(
        **{"temperature": 0.7, "logprobs": 0, "max_tokens": 8, "ignore_eos": True, **fields},
        output_kind=RequestOutputKind.DELTA,
    )
    async for output in engine.generate({"prompt_token_ids": token_ids}, params, request_id=name):
        for completion in output.outputs:
            note(name, token_ids, completion)
            if started and len(ROWS[name, 0]["token_ids"]) >= 4:
                started.set()
            if abort_after and len(ROWS[name, 0]["token_ids"]) >= abort_after:
                return


async def main(model, view):
    args = {"max_model_len": 256, "max_num_batched_tokens": 64, "block_size": 32, "num_gpu_blocks_override": 24}
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, enforce_eager=True, seed=0, **args))
    await ask(engine, "first", PROMPT)
    await ask(engine, "warm", PROMPT)
    await engine.collective_rpc("reload_weights", kwargs={"weights_path": model})
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
    many = [ask(engine, f"many-{i}", [i + 5, *PROMPT], max_tokens=90) for i in range(8)]
    many += [ask(engine, "children", PROMPT[:20], n=2), ask(engine, "abort", [9, 9, 9], abort_after=5, max_tokens=200)]
    await asyncio.gather(*many)
    engine.shutdown()
    with open(view, "w") as file:
        file.writelines(json.dumps({"request": n, **row}) + "\n" for n, row in enumerate(ROWS.values()))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
