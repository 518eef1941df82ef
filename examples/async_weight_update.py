"""Rollouts that keep running while the trainer's next weights are loaded: pause, load, resume.

tracekit record --engine v1 -o trace.arrow -- python examples/async_weight_update.py MODEL NEXT_MODEL
"""

import asyncio
import sys

from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

PROMPTS = ["Once upon a time", "The three laws of robotics are", "To make bread, first"]


async def rollout(engine: AsyncLLM, name: str, prompt: str, started: asyncio.Event) -> None:
    params = SamplingParams(
        temperature=0.7, max_tokens=32, ignore_eos=True, logprobs=0, output_kind=RequestOutputKind.DELTA
    )
    token_ids = []
    async for output in engine.generate(prompt, params, request_id=name):
        token_ids += output.outputs[0].token_ids
        if len(token_ids) >= 8:
            started.set()
    print(name, token_ids)


async def main(model: str, next_model: str) -> None:
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, max_model_len=512, enforce_eager=True))
    started = asyncio.Event()
    rollouts = [asyncio.create_task(rollout(engine, f"rollout-{i}", p, started)) for i, p in enumerate(PROMPTS)]
    await started.wait()
    await engine.pause_generation(mode="keep", clear_cache=False)
    await engine.collective_rpc("reload_weights", kwargs={"weights_path": next_model})
    await engine.resume_generation()
    await asyncio.gather(*rollouts)
    engine.shutdown()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
