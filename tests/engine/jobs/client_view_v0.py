"""A job full of awkward requests on V0's AsyncLLMEngine; writes what each client received, bit for bit.

client_view_v0.py MODEL OUT.json
"""

import asyncio
import json
import sys

from vllm import AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind

VIEW = {}
PROMPTS = "prompt logprobs"


def client_row(row):
    return None if row is None else {str(i): [float(v.logprob).hex(), v.rank] for i, v in row.items()}


def note(name, completion):
    seen = VIEW.setdefault(name, {}).setdefault(str(completion.index), {"token_ids": [], "logprobs": []})
    seen["token_ids"] += completion.token_ids
    if completion.logprobs is not None:
        # a delta carries its own tokens; the dict holds the sampled token and, where asked for, the top ones
        pairs = zip(completion.token_ids, completion.logprobs, strict=True)
        seen["logprobs"] += [float(row[token_id].logprob).hex() for token_id, row in pairs]
        tops = [
            sorted((top.rank, t, float(top.logprob).hex()) for t, top in row.items()) for row in completion.logprobs
        ]
        seen.setdefault("tops", []).extend(tops)
    seen["finish_reason"] = completion.finish_reason


async def ask(engine, name, token_ids, params, delay=0.0, abort_after=None):
    await asyncio.sleep(delay)
    async for output in engine.generate({"prompt_token_ids": list(token_ids)}, params, request_id=name):
        if output.prompt_logprobs:
            VIEW.setdefault(PROMPTS, {})[name] = [client_row(row) for row in output.prompt_logprobs]
        for completion in output.outputs:
            note(name, completion)
            if abort_after and len(VIEW[name]["0"]["token_ids"]) >= abort_after:
                VIEW[name]["0"]["finish_reason"] = "abort"
                await engine.abort(name)
                return


def params(kind=RequestOutputKind.DELTA, **fields):
    return SamplingParams(
        **{"temperature": 0.7, "top_p": 0.9, "logprobs": 0, "max_tokens": 24, **fields}, output_kind=kind
    )


async def main(model, out):
    args = {"max_model_len": 512, "max_num_batched_tokens": 64, "max_num_seqs": 8, "enforce_eager": True, "seed": 0}
    args |= {"enable_chunked_prefill": True, "enable_prefix_caching": True, "block_size": 16, "dtype": "float32"}
    engine = AsyncLLMEngine.from_engine_args(AsyncEngineArgs(model=model, **args))
    final = RequestOutputKind.FINAL_ONLY
    long = [i % 900 + 300 for i in range(300)]
    await asyncio.gather(
        ask(engine, "stream", range(5, 25), params(ignore_eos=True)),
        ask(engine, "final", range(40, 50), params(final, ignore_eos=True), 0.05),
        ask(engine, "many", range(60, 70), params(final, n=3, logprobs=2, ignore_eos=True), 0.1),
        ask(engine, "long", long, params(ignore_eos=True), 0.15),
        ask(engine, "stop", range(80, 90), params(stop=["e", "a"], temperature=1.0, max_tokens=60), 0.2),
        ask(engine, "stop-token", range(30, 36), params(stop_token_ids=list(range(0, 49152, 2)), ignore_eos=True)),
        ask(engine, "abort", range(90, 99), params(max_tokens=400, ignore_eos=True), 0.1, abort_after=6),
        ask(engine, "greedy", range(110, 120), params(temperature=0.0, ignore_eos=True), 0.3),
        ask(engine, "biased", range(150, 160), params(logit_bias={28: 100.0}, max_tokens=4), 0.3),
        ask(engine, "unasked", range(160, 170), params(logprobs=None, ignore_eos=True), 0.3),
        # in chunks; V0 ends where such a prompt finds its prefix cached, or is preempted
        ask(engine, "scored", [i % 900 + 20000 for i in range(150)], params(prompt_logprobs=2, ignore_eos=True), 0.2),
        ask(engine, "scored-final", range(170, 190), params(final, prompt_logprobs=0, ignore_eos=True), 0.3),
        ask(engine, "later", range(130, 140), params(ignore_eos=True), 0.6),
    )
    # the first prompt's blocks are in the cache by now: 18 of 16 tokens
    await ask(engine, "cached", long, params(ignore_eos=True))
    await ask(engine, "cached-whole", long[:288], params(ignore_eos=True))
    with open(out, "w") as file:
        json.dump(VIEW, file)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
