"""The engine process of bench/recorder.py: rounds of generation with the recorder's hooks in place and taken out.

throughput.py MODEL ROUNDS NUM_SEQS NUM_TOKENS LOGPROBS OUT.json, where LOGPROBS is what the client asks for, or none.
"""

import json
import os
import sys
import time
import types
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine's thread is this one, so that it can be measured

from vllm import LLM, SamplingParams


def hooked_methods():
    """(owner, name, our wrapper) of everything that the recorder has wrapped in vLLM's modules."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("vllm") and module is not None]
    owners = {id(v): v for module in modules for v in [module, *vars(module).values()] if isinstance(v, type)}
    owners |= {id(module): module for module in modules}
    return [(o, name, value) for o in owners.values() for name, value in list(vars(o).items()) if original_of(value)]


def original_of(value):
    """What of vLLM's a wrapper of ours stands for; None where it is none."""
    if isinstance(value, property):
        original = original_of(value.fget)
        return original and property(original)
    return value.__wrapped__ if isinstance(value, types.FunctionType) and hasattr(value, "_tracekit") else None


def take_out(hooked):
    for owner, name, value in hooked:
        setattr(owner, name, original_of(value))


def put_back(hooked):
    for owner, name, value in hooked:
        setattr(owner, name, value)


def clocked(method, spent):
    def timed(*args, **kwargs):
        begin = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - begin
            spent[1] += 1

    timed.__wrapped__ = method
    return timed


def hook_secs(hooked, run):
    """Seconds that ``run`` spends in our hooks: clocks around them minus clocks around what they call."""
    methods = [(owner, name, value) for owner, name, value in hooked if callable(value)]
    cost = []
    for ours in (False, True):  # without ours in between, the clocks measure themselves
        inner, outer = [0.0, 0], [0.0, 0]
        for owner, name, value in methods:
            around = rewrapped(value, clocked(value.__wrapped__, inner)) if ours else clocked(value.__wrapped__, inner)
            setattr(owner, name, clocked(around, outer))
        run()
        cost.append(outer[0] - inner[0])
    put_back(hooked)
    return cost[1] - cost[0]


def rewrapped(wrapper, original):
    """A copy of our wrapper that calls ``original``: its one closure cell that holds vLLM's method is replaced."""
    cells = [
        types.CellType(original if c.cell_contents is wrapper.__wrapped__ else c.cell_contents)
        for c in wrapper.__closure__
    ]
    return types.FunctionType(
        wrapper.__code__, wrapper.__globals__, wrapper.__name__, wrapper.__defaults__, tuple(cells)
    )


def rss_mib():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def main(model, rounds, num_seqs, num_tokens, logprobs, out):
    config = {"max_model_len": 2048, "enforce_eager": True, "max_num_seqs": num_seqs, "enable_prefix_caching": False}
    llm = LLM(model=model, seed=0, **config)
    prompts = [{"prompt_token_ids": [7 + i, 11, 13, 17]} for i in range(num_seqs)]
    asked = {} if logprobs == "none" else {"logprobs": int(logprobs)}
    params = SamplingParams(temperature=1.0, max_tokens=num_tokens, ignore_eos=True, detokenize=False, **asked)
    hooked = hooked_methods()

    def round_secs():
        begin = time.perf_counter()
        llm.generate(prompts, params, use_tqdm=False)
        return time.perf_counter() - begin

    round_secs()  # warm up
    pairs, rss = [], []
    for i in range(rounds):
        secs = {}
        for recorded in (i % 2 == 0, i % 2 == 1):  # who goes first alternates
            if not recorded:
                take_out(hooked)
            secs[recorded] = round_secs()
            put_back(hooked)
        pairs.append((secs[False], secs[True]))
        rss.append(rss_mib())
    result = {
        "hooks": sorted(f"{getattr(o, '__qualname__', o.__name__)}.{name}" for o, name, _ in hooked),
        "pairs": pairs,
        "tokens_per_round": num_seqs * num_tokens,
        "hook_us": sorted(hook_secs(hooked, round_secs) / num_tokens * 1e6 for _ in range(3)),
        "rss_growth_mib": rss[-1] - rss[0],
        "rss_mib": rss[-1],
    }
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:7])
