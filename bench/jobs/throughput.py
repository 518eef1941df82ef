"""The engine process of bench/recorder.py: rounds of generation with the recorder's hooks in place and taken out.

Then its recording is stopped, as `tracekit attach --stop` does, and rounds of the dormant engine are set against rounds
without even what stays: the wraps that no step runs through, and the thread that looks for orders.

throughput.py MODEL ROUNDS NUM_SEQS NUM_TOKENS LOGPROBS OUT.json, where LOGPROBS is what the client asks for, or none.
"""

import functools
import json
import os
import sys
import time
from pathlib import Path
from types import FunctionType

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's thread is this one, so that it can be measured

from vllm import LLM, SamplingParams

from tracekit.recorder import desk
from tracekit.recorder.place import Order
from tracekit.recorder.select import select_generation
from tracekit.recorder.vllm import hooks


def clocked(method, spent):
    @functools.wraps(method)
    def timed(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent.append(time.perf_counter() - begin)

    return timed


def off():
    """Take out all wraps but those that a dormant engine has, which no step runs through."""
    return hooks.uninstall(keep=select_generation()._birth)


def hook_secs(run):
    """Seconds that ``run`` spends in our hooks: clocks around them minus clocks around what they go around.

    Returns:
        In all, and in every call of each hook (the clocks among it).
    """
    cost = []
    for ours in (False, True):  # without ours in between, the clocks measure themselves
        taken = off()
        methods = {(h.owner, h.name): h.original for h in reversed(taken) if isinstance(h.original, FunctionType)}
        inner, outer = {place: [] for place in methods}, {place: [] for place in methods}
        for (owner, name), original in methods.items():
            setattr(owner, name, clocked(original, inner[owner, name]))
        if ours:
            hooks.reinstall(taken)
        below = {place: vars(place[0])[place[1]] for place in methods}
        for (owner, name), method in below.items():
            setattr(owner, name, clocked(method, outer[owner, name]))
        run()
        for (owner, name), method in below.items():
            setattr(owner, name, method)
        off()
        for (owner, name), original in methods.items():
            setattr(owner, name, original)
        hooks.reinstall(taken)
        # of a method that calls itself, or that a hook does not call, the two do not go in pairs
        even = [place for place in methods if len(outer[place]) == len(inner[place])]
        calls = [o - i for place in even for o, i in zip(outer[place], inner[place], strict=True)]
        cost.append(sum(map(sum, outer.values())) - sum(map(sum, inner.values())))
    return cost[1] - cost[0], calls


def paired(rounds, round_secs, take_out, put_in):
    """Seconds of a round (without, with) what is taken out; who goes first alternates."""
    pairs = []
    for i in range(rounds):
        secs = {}
        for there in (i % 2 == 0, i % 2 == 1):
            taken = None if there else take_out()
            secs[there] = round_secs()
            if not there:
                put_in(taken)
        pairs.append((secs[False], secs[True]))
    return pairs


def stop(round_secs):
    """End the recording between two steps; what a step runs through is vLLM's own again."""
    ours = desk._desk
    (counter,) = ours._counters
    steps = [(h.owner, h.name, h.original) for h in hooks.installed() if h.name in ("schedule", "update_from_output")]
    assert counter._customer.told(Order("bench", "stop")) == ""
    round_secs()
    while counter._customer.tend()["state"] != "dormant":
        time.sleep(0.1)
    assert steps and all(vars(owner)[name] is original for owner, name, original in steps)


def without_ours():
    desk.LOOK_SECS = 3600
    return hooks.uninstall()


def with_ours(taken):
    hooks.reinstall(taken)
    desk.LOOK_SECS = 1
    desk._desk._wake.set()


def rss_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def main(model, rounds, num_seqs, num_tokens, logprobs, out):
    config = {"max_model_len": 2048, "enforce_eager": True, "max_num_seqs": num_seqs, "enable_prefix_caching": False}
    llm = LLM(model=model, seed=0, **config)
    prompts = [{"prompt_token_ids": [7 + i, 11, 13, 17]} for i in range(num_seqs)]
    asked = {} if logprobs == "none" else {"logprobs": int(logprobs)}
    params = SamplingParams(temperature=1.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False, **asked)

    def round_secs():
        begin = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - begin

    round_secs()  # warm up
    taken = off()
    hooked = sorted({f"{getattr(h.owner, '__qualname__', h.owner.__name__)}.{h.name}" for h in taken})
    hooks.reinstall(taken)
    rss = []

    def put_in(taken):
        hooks.reinstall(taken)
        rss.append(rss_mib())

    pairs = paired(rounds, round_secs, off, put_in)
    hooked_rounds = [hook_secs(round_secs) for _ in range(3)]
    stop(round_secs)
    result = {
        "hooks": hooked,
        "pairs": pairs,
        "tokens_per_round": num_seqs * num_tokens,
        "hook_us": [secs / num_tokens * 1e6 for secs, _ in hooked_rounds],
        "call_us": [secs * 1e6 for _, calls in hooked_rounds for secs in calls],
        "dormant_pairs": paired(rounds, round_secs, without_ours, with_ours),
        "rss_growth_mib": rss[-1] - rss[0],
        "rss_mib": rss[-1],
    }
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:7])
