"""Weights that change while requests run, with sync and async scheduling; a pause that clears the cache in flight.

updates.py MODEL FOLDER in-process|pause: writes FOLDER/view.jsonl as `tracekit.jobs.rollout` does, and
FOLDER/truth.json, what the job itself saw of each forward and of each output of its two engines in this process.
`pause` adds AsyncLLM's pause, in an engine process, and updates with a reset after each.
"""

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

from vllm import AsyncEngineArgs, EngineArgs, LLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

sys.path.insert(0, str(Path(__file__).parent))
import async_cpu
from kv_memory import Memory
from stale_hits import changed_copy

async_cpu.allow()

ROWS = {}
# 5 requests of 60 + 40 tokens in 15 blocks of 32, one of which vLLM keeps: some are preempted
PROMPTS = [[100 + 90 * i + j for j in range(60)] for i in range(5)]
SHARED = [700 + j for j in range(72)]
CACHED = {}  # tokens that the client is told were cached, by request
ARGS = {"max_model_len": 128, "enforce_eager": True, "seed": 0, "block_size": 32, "num_gpu_blocks_override": 15}
ARGS["dtype"] = "float32"  # a greedy token must not hang on who else is in the batch


def params(kind=RequestOutputKind.FINAL_ONLY, num_tokens=40):
    return SamplingParams(temperature=0, logprobs=0, max_tokens=num_tokens, ignore_eos=True, output_kind=kind)


def note(name, prompt, completion, num_cached=None):
    CACHED[name] = num_cached
    row = {"request_id": name, "index": 0, "prompt_token_ids": prompt, "token_ids": [], "logprobs": []}
    row = ROWS.setdefault(name, row)
    row["token_ids"] += completion.token_ids
    row["logprobs"] += [at[t].logprob for at, t in zip(completion.logprobs, completion.token_ids, strict=True)]
    row["finish_reason"] = completion.finish_reason


def watch(engine):
    """Note which weights each forward uses and which are there when its output is taken, and what hits find."""
    core = engine.engine_core.engine_core
    runner, scheduler = core.model_executor.driver_worker.worker.model_runner, core.scheduler
    forwards, execute, update = [], runner.execute_model, scheduler.update_from_output
    taken, versions, lookups, hits = [], {}, {}, []
    memory = Memory(runner.kv_caches[0], ARGS["num_gpu_blocks_override"])
    look_up = scheduler.kv_cache_manager.get_computed_blocks

    def get_computed_blocks(request):
        found = look_up(request)
        lookups[request.request_id] = (found[1], *found[0].get_block_ids())
        return found

    def scale():
        return float(runner.get_model().model.norm.weight[0])

    def execute_model(scheduled, *args, **kwargs):
        if scheduled.total_num_scheduled_tokens:
            cached = scheduled.scheduled_cached_reqs
            start = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
            start |= {new.req_id: new.num_computed_tokens for new in scheduled.scheduled_new_reqs}
            ends = {r: start[r] + n for r, n in scheduled.num_scheduled_tokens.items()}
            forwards.append({"scale": scale(), "ends": ends, "in_flight": len(forwards) - len(taken)})
            version = versions.setdefault(scale(), len(versions))
        memory.before()
        output = execute(scheduled, *args, **kwargs)
        if scheduled.total_num_scheduled_tokens:
            memory.after(version)
            for request_id in (r for r in scheduled.num_scheduled_tokens if r in lookups):
                num_cached, blocks = lookups.pop(request_id)
                if num_cached:
                    hits.append([request_id, num_cached, blocks, [memory.versions(block) for block in blocks]])
        return output

    def update_from_output(scheduled, output):
        if scheduled.total_num_scheduled_tokens:
            taken.append(scale())
        return update(scheduled, output)

    runner.execute_model, scheduler.update_from_output = execute_model, update_from_output
    scheduler.kv_cache_manager.get_computed_blocks = get_computed_blocks
    return {"forwards": forwards, "taken": taken, "hits": hits}


def multiply(worker, factor):
    model = worker.get_model().model
    model.norm.weight.data.mul_(factor)
    model.layers[0].input_layernorm.weight.data.mul_(factor)  # so that keys and values change


def reset(engine, drain):
    """Reset the cache under running requests: at once, or after the steps in flight as a pause does."""
    core = engine.engine_core.engine_core
    state = core.scheduler.pause_state
    if drain:
        core.scheduler.set_pause_state(type(state).PAUSED_ALL)
        while core.batch_queue:
            engine.step()
    assert core.reset_prefix_cache(reset_running_requests=True)
    core.scheduler.set_pause_state(state)


def change(factor):
    return lambda engine: engine.collective_rpc(multiply, args=(factor,))


CHANGES = {19: change(1.5), 40: change(0.75)}  # after so many steps


def run(engine, prefix, num_requests, events):
    for i, prompt in enumerate(PROMPTS[:num_requests]):
        engine.add_request(f"{prefix}-{i}", {"prompt_token_ids": prompt}, params())
    finish(engine, events)
    assert engine.reset_prefix_cache()


def finish(engine, events):
    num_steps = 0
    while engine.has_unfinished_requests():
        for output in engine.step():
            note(output.request_id, output.prompt_token_ids, output.outputs[0], output.num_cached_tokens)
        num_steps += 1
        if num_steps in events:
            events[num_steps](engine)


def share(engine, kind):
    """One prompt again and again, under weights that change between the requests, and in one of them."""

    def one(name, prompt, num_tokens=8, events=None):
        engine.add_request(f"{kind}-{name}", {"prompt_token_ids": prompt}, params(num_tokens=num_tokens))
        finish(engine, events or {})

    one("first", SHARED)
    one("warm", SHARED)
    change(1.5)(engine)
    one("stale", SHARED)
    one("half", SHARED[40:], 40, {12: change(0.75)})
    one("mixed", SHARED[40:] + ROWS[f"{kind}-half"]["token_ids"])
    assert engine.reset_prefix_cache()
    one("cold", SHARED)
    one("warm-again", SHARED)


def in_this_process(model):
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    kinds = {"sync": False, "async": True}
    engines = {
        kind: LLMEngine.from_engine_args(EngineArgs(model=model, async_scheduling=asynchronous, **ARGS))
        for kind, asynchronous in kinds.items()
    }
    truth = {kind: watch(engine) for kind, engine in engines.items()}
    for kind, engine in engines.items():
        run(engine, f"{kind}-same", 5, {})
        run(engine, f"{kind}-changed", 5, CHANGES)
        run(engine, f"{kind}-straight", 2, {})
        run(engine, f"{kind}-reset", 2, {12: lambda engine: reset(engine, drain=False)})
    run(engines["async"], "async-drained", 2, {12: lambda engine: reset(engine, drain=True)})
    # the last: the weights are others afterwards
    for kind, engine in engines.items():
        share(engine, kind)
    return truth


async def ask(engine, name, prompt, started):
    async for output in engine.generate(
        {"prompt_token_ids": prompt}, params(RequestOutputKind.DELTA, 30), request_id=name
    ):
        note(name, prompt, output.outputs[0])
        if len(ROWS[name]["token_ids"]) >= 8:
            started.set()


async def paused(model):
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, async_scheduling=True, **ARGS))
    for pause in (False, True):
        started = asyncio.Event()
        names = [f"{'paused' if pause else 'straight'}-{i}" for i in range(2)]
        running = [asyncio.create_task(ask(engine, name, PROMPTS[i], started)) for i, name in enumerate(names)]
        await started.wait()
        if pause:
            await engine.pause_generation(mode="keep")
            await engine.resume_generation()
        await asyncio.gather(*running)
        await engine.reset_prefix_cache()
    with tempfile.TemporaryDirectory() as folder:
        for i, path in enumerate((changed_copy(model, folder), model)):
            await engine.collective_rpc("reload_weights", kwargs={"weights_path": path})
            assert await engine.reset_prefix_cache()
            await ask(engine, f"emptied-{i}", PROMPTS[0], asyncio.Event())
    # 0.18's engine process can miss the signal to end where its main thread goes idle just then, and is then killed
    await asyncio.sleep(1)
    engine.shutdown(timeout=60)  # a busy machine may take its time


if __name__ == "__main__":
    model, folder = sys.argv[1], Path(sys.argv[2])
    truth = in_this_process(model)
    if sys.argv[3] == "pause":
        asyncio.run(paused(model))
    (folder / "truth.json").write_text(json.dumps({**truth, "cached": CACHED}))
    lines = [json.dumps({"request": number, **row}) + "\n" for number, row in enumerate(ROWS.values())]
    (folder / "view.jsonl").write_text("".join(lines))
