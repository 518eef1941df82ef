"""Time, memory and error of the scorer against what anyone would pick instead, in one process and in turn.

The naive side is transformers' own forward of a padded batch, then `logits.float().log_softmax()`; it runs in bfloat16
and in float32, and a ratio is against the faster of the two. Groups of 8 rollouts share a prompt, as in GRPO. The naive
side takes a group as it comes, as a trainer's micro batch does, and once more like with like, where next to nothing is
padded. Beside each ratio stands what products alone allow (`bounds.py`).

    python bench/scorer.py [--model FOLDER | --model demo | --shape qwen2-7b] [--device cuda] [--json]

Times are medians over the rounds of (naive / ours), tokens a second of the one over the other. Memory is the peak above
what the loaded model takes: on a GPU by torch's counter, on a CPU by the high-water mark of a child process that runs
one side once. The error is against a float64 head and log-softmax on each side's own hidden states. `share of the
matrix rate` is against a large matrix product of the same dtype measured in the same call.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import memory
import naive
import numpy as np
import shapes
import torch
from bounds import bounds
from lengths import repeated_prompts, rollouts

from tracekit.cli.models import model_folder
from tracekit.scoring.loading import pick_device
from tracekit.scoring.params import Params
from tracekit.scoring.scorer import Scorer
from tracekit.scoring.spans import whole
from tracekit.scoring.types import Sequence

Score = Callable[[list[Sequence]], list[np.ndarray]]
TOP_P = Params(temperature=0.7, top_p=0.9)


def ours(scorer: Scorer, max_batch_tokens: int, *, share: bool = True) -> Score:
    def score(sequences: list[Sequence]) -> list[np.ndarray]:
        spans = [whole(sequence) for sequence in sequences]
        found = scorer.score(spans, max_batch_tokens=max_batch_tokens, share=share)
        return [one.readings[0].raw_logprob for one in found]

    return score


def sync(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def time_rounds(args: argparse.Namespace) -> dict:
    scorer = Scorer.load(args.model, dtype="bfloat16", device=args.device)
    plain = sequences_for(args, scorer.vocab_size)
    sampled = [replace(sequence, params=TOP_P) for sequence in plain]
    shared = ours(scorer, args.max_batch_tokens)
    runs = {
        "shared": lambda: shared(plain),
        "unshared": lambda: ours(scorer, args.max_batch_tokens, share=False)(plain),
        "shared, top-p": lambda: shared(sampled),
    }
    plans = {
        "group by group": partial(naive.group_by_group, args.micro_batch),
        "like with like": partial(naive.like_with_like, args.max_batch_tokens),
    }
    for dtype in args.naive:
        model = naive.load(args.model, dtype, args.device)
        for name, plan in plans.items():
            runs[f"naive {dtype}, {name}"] = partial(naive.scorer(model, plan), plain)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(args.rounds + 1):
        for name in runs if number % 2 else reversed(runs):
            sync(scorer.device)
            begin = time.perf_counter()
            result = runs[name]()
            sync(scorer.device)
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
            assert all(np.isfinite(row).all() for row in result)
    num = sum(len(sequence.token_ids) for sequence in plain)
    against = {}
    for name, plan in plans.items():
        fastest = min((f"naive {dtype}, {name}" for dtype in args.naive), key=lambda n: statistics.median(seconds[n]))
        against[f"faster naive, {name}"] = fastest
        for way, bound in zip(("shared", "unshared"), bounds(model, plain, plan), strict=True):
            against |= ratios(f"speed, {way} over naive, {name}", seconds[fastest], seconds[way])
            against[f"speed that products alone allow, {way}, {name}"] = round(bound, 2)
    return {
        "packing": scorer.packing,
        "arithmetic": scorer.arithmetic,
        "token multiplier": round(multiplier(plain), 2),
        "tokens": num,
        **{f"tokens a second, {name}": round(num / statistics.median(seconds[name])) for name in runs},
        **against,
        **ratios("time, with top-p over without", seconds["shared, top-p"], seconds["shared"]),
    }


def ratios(name: str, over: list[float], under: list[float]) -> dict:
    each = sorted(a / b for a, b in zip(over, under, strict=True))
    return {name: round(statistics.median(each), 3), f"{name} (range)": [round(each[0], 3), round(each[-1], 3)]}


def multiplier(sequences: list[Sequence]) -> float:
    """Tokens that run without sharing, for each that runs with shared prompts."""
    alone = sum(len(s.prompt_token_ids) + len(s.token_ids) for s in sequences)
    return alone / (alone - sum(repeated_prompts(sequences)))


def sequences_for(args: argparse.Namespace, vocab_size: int, times: int = 1) -> list[Sequence]:
    groups = args.groups * times
    return rollouts(Path(args.model), vocab_size, groups=groups, size=args.group, params=Params())


def peak(kind: str, times: int, args: argparse.Namespace, out: "multiprocessing.Queue[int]") -> None:
    if kind == "ours":
        scorer = Scorer.load(args.model, dtype="bfloat16", device=args.device)
        score, vocab_size = ours(scorer, args.max_batch_tokens), scorer.vocab_size
    else:
        model = naive.load(args.model, "bfloat16", args.device)
        plan = partial(naive.like_with_like, args.max_batch_tokens)
        score, vocab_size = naive.scorer(model, plan), model.get_output_embeddings().weight.shape[0]
    sequences = sequences_for(args, vocab_size, times)
    ids = np.arange(2, dtype=np.uint32)
    score([Sequence(0, 0, ids, ids, Params())])
    out.put(memory.peak_of(lambda: score(sequences), args.device))


def measure_memory(args: argparse.Namespace) -> dict:
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for kind, times in (("ours", 1), ("ours", 2), ("naive", 1)):
        queue = context.Queue()
        process = context.Process(target=peak, args=(kind, times, args, queue))
        process.start()
        peaks[kind, times] = queue.get()
        process.join()
    return {
        "peak MiB, ours": round(peaks["ours", 1] / 2**20),
        "peak MiB, ours, twice the rollouts": round(peaks["ours", 2] / 2**20),
        "peak MiB, naive bfloat16": round(peaks["naive", 1] / 2**20),
        "memory, ours over naive": round(peaks["ours", 1] / peaks["naive", 1], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="model folder, or a name that `tracekit replay --model` knows")
    parser.add_argument("--shape", choices=list(shapes.SHAPES), help="a random model of this shape instead")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--naive", nargs="+", default=["bfloat16", "float32"], help="dtypes of the naive side")
    parser.add_argument("--groups", type=int, help="default: 2 on a CPU, 8 on a GPU")
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--micro-batch", type=int, help="rollouts of the naive side's batches; default: a group")
    parser.add_argument("--max-batch-tokens", type=int, help="default: 2048 on a CPU, 16384 on a GPU, as in replay")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip", nargs="*", default=[], choices=["time", "memory", "error"])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.device = str(pick_device(args.device))
    on_gpu = args.device.startswith("cuda")
    args.groups = args.groups or (8 if on_gpu else 2)
    args.micro_batch = args.micro_batch or args.group
    args.max_batch_tokens = args.max_batch_tokens or (16384 if on_gpu else 2048)
    args.model = str(shapes.make(args.shape) if args.shape else model_folder(args.model))
    result = {"model": Path(args.model).name, "device": args.device, "threads": torch.get_num_threads()}
    if "memory" not in args.skip:
        result |= measure_memory(args)
    if "time" not in args.skip:
        result |= time_rounds(args)
    if "error" not in args.skip:
        result |= naive.head_errors(args.model, args.device)
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:60} {value}")


if __name__ == "__main__":
    main()
