"""The engine process of bench/recorder.py: rounds of generation with the recorder's hooks in place and taken out.

throughput.py MODEL ROUNDS NUM_SEQS NUM_TOKENS OUT.json
"""

import json
import os
import resource
import sys
import time

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's thread is this one, so that it can be measured

from vllm import LLM, SamplingParams
from vllm.v1.core.sched.scheduler import Scheduler

STEP_HOOKS = ("schedule", "update_from_output")


def take_out(names):
    """Put vLLM's own methods back; returns ours."""
    hooked = {name: vars(Scheduler)[name] for name in names}
    for name, method in hooked.items():
        setattr(Scheduler, name, method.__wrapped__)
    return hooked


def clock(method, spent):
    def timed(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - begin)

    return timed


def secs_around(run, between):
    """Seconds per call that ``between`` adds to vLLM's own methods: a clock outside it minus a clock inside it."""
    hooked, inner, outer = take_out(STEP_HOOKS), [], []
    for name in STEP_HOOKS:
        setattr(Scheduler, name, clock(vars(Scheduler)[name], inner))
    between()
    for name in STEP_HOOKS:
        setattr(Scheduler, name, clock(vars(Scheduler)[name], outer))
    run()
    for name, method in hooked.items():
        setattr(Scheduler, name, method)
    return sorted(o - i for o, i in zip(outer, inner, strict=True))


def hook_secs_per_step(run):
    """Mean and median seconds that our hooks cost a step on the engine's thread, the clocks' own cost taken off."""
    from tracekit.recorder.engines.v1 import V1Adapter

    nothing, ours = secs_around(run, lambda: None), secs_around(run, lambda: V1Adapter().attach())
    means = [sum(calls) / len(calls) for calls in (nothing, ours)]
    medians = [calls[len(calls) // 2] for calls in (nothing, ours)]
    return len(STEP_HOOKS) * (means[1] - means[0]), len(STEP_HOOKS) * (medians[1] - medians[0])


def main(model, rounds, num_seqs, num_tokens, out):
    config = {"max_model_len": 2048, "enforce_eager": True, "max_num_seqs": num_seqs, "enable_prefix_caching": False}
    llm = LLM(model=model, seed=0, **config)
    prompts = [{"prompt_token_ids": [7 + i, 11, 13, 17]} for i in range(num_seqs)]
    params = SamplingParams(temperature=1.0, max_tokens=num_tokens, ignore_eos=True, logprobs=0, detokenize=False)
    names = [*STEP_HOOKS, "add_request"]

    def round_secs():
        begin = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - begin

    round_secs()  # warm up
    pairs = []
    for i in range(rounds):
        secs = {}
        for recorded in (i % 2 == 0, i % 2 == 1):  # who goes first alternates
            hooked = {} if recorded else take_out(names)
            secs[recorded] = round_secs()
            for name, method in hooked.items():
                setattr(Scheduler, name, method)
        pairs.append((secs[False], secs[True]))
    mean, median = hook_secs_per_step(round_secs)
    result = {
        "pairs": pairs,
        "tokens_per_round": num_seqs * num_tokens,
        "hook_us_mean": mean * 1e6,
        "hook_us_median": median * 1e6,
        "max_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    with open(out, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5])
