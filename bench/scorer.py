"""Time and memory of the scorer against the naive one: full [tokens, vocab] logits, then one log-softmax.

Both score the same sequences, in turn, in one process (ours with its float32 head, the naive one in the dtype):

    python bench/scorer.py [--model FOLDER] [--device cuda] [--json]

The time is the median over the rounds of (ours / naive); the memory is the peak above what the loaded model takes:
on a GPU by torch's own counter, on a CPU by the high-water mark of a child process that runs one of the two once.
Tokens are random, so the top-p figure is a bad case: nuclei are wide, and a CPU sorts whole vocabularies for them.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from tracekit.cli.models import model_folder
from tracekit.scoring.params import Params
from tracekit.scoring.scorer import Scorer
from tracekit.scoring.spans import whole
from tracekit.scoring.types import Sequence

Score = Callable[[list[Sequence]], list[np.ndarray]]


def make_sequences(vocab_size: int, *, num: int, prompt: int, completion: int, params: Params) -> list[Sequence]:
    rng = np.random.default_rng(0)
    return [
        Sequence(
            0,
            i,
            rng.integers(0, vocab_size, prompt).astype(np.uint32),
            rng.integers(0, vocab_size, completion).astype(np.uint32),
            params,
        )
        for i in range(num)
    ]


def ours(scorer: Scorer, max_batch_tokens: int) -> Score:
    def score(sequences: list[Sequence]) -> list[np.ndarray]:
        found = scorer.score([whole(s) for s in sequences], max_batch_tokens=max_batch_tokens)
        return [s.readings[0].raw_logprob for s in found]

    return score


def naive(model: torch.nn.Module, max_batch_tokens: int) -> Score:
    """Every position of every sequence through the head at once, as a plain forward does it."""
    device = next(model.parameters()).device

    @torch.inference_mode()
    def score(sequences: list[Sequence]) -> list[np.ndarray]:
        length = len(sequences[0].prompt_token_ids) + len(sequences[0].token_ids)
        rows = max(max_batch_tokens // length, 1)
        results = []
        for first in range(0, len(sequences), rows):
            batch = sequences[first : first + rows]
            ids = torch.stack(
                [torch.from_numpy(np.concatenate([s.prompt_token_ids, s.token_ids]).astype(np.int64)) for s in batch]
            ).to(device)
            logprobs = model(input_ids=ids, use_cache=False).logits.float().log_softmax(dim=-1)
            chosen = logprobs[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
            results += [row[len(s.prompt_token_ids) - 1 :].cpu().numpy() for row, s in zip(chosen, batch, strict=True)]
        return results

    return score


def load(kind: str, args: argparse.Namespace) -> tuple[Score, int]:
    """A scoring function and the model's vocabulary."""
    if kind == "ours":
        scorer = Scorer.load(args.model, dtype=args.dtype, device=args.device)
        return ours(scorer, args.max_batch_tokens), scorer.vocab_size
    from tracekit.scoring.loading import load_model, pick_device

    model = load_model(Path(args.model), dtype=args.dtype, device=pick_device(args.device))
    return naive(model, args.max_batch_tokens), model.get_output_embeddings().weight.shape[0]


def sequences_for(args: argparse.Namespace, vocab_size: int, params: Params) -> list[Sequence]:
    return make_sequences(vocab_size, num=args.sequences, prompt=args.prompt, completion=args.completion, params=params)


def sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_rounds(args: argparse.Namespace) -> dict:
    (score_ours, vocab_size), (score_naive, _) = load("ours", args), load("naive", args)
    plain = sequences_for(args, vocab_size, Params())
    sampled = sequences_for(args, vocab_size, Params(temperature=0.7, top_p=0.9))
    runs = {
        "ours": lambda: score_ours(plain),
        "ours_top_p": lambda: score_ours(sampled),
        "naive": lambda: score_naive(plain),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(args.rounds + 1):
        for name in runs if round_number % 2 else reversed(runs):
            sync()
            begin = time.perf_counter()
            result = runs[name]()
            sync()
            if round_number:  # the first round warms up
                seconds[name].append(time.perf_counter() - begin)
            assert all(np.isfinite(row).all() for row in result)

    def ratio(name: str) -> list[float]:
        return sorted(a / b for a, b in zip(seconds[name], seconds["naive"], strict=True))

    return {
        "tokens": args.sequences * args.completion,
        "tokens_per_second": round(args.sequences * args.completion / statistics.median(seconds["ours"])),
        "time_ratio_median": round(statistics.median(ratio("ours")), 3),
        "time_ratio_range": [round(ratio("ours")[0], 3), round(ratio("ours")[-1], 3)],
        "time_ratio_with_top_p_median": round(statistics.median(ratio("ours_top_p")), 3),
    }


def peak_bytes(kind: str, args: argparse.Namespace, out: "multiprocessing.Queue[int]") -> None:
    score, vocab_size = load(kind, args)
    score(make_sequences(vocab_size, num=1, prompt=2, completion=2, params=Params()))
    sequences = sequences_for(args, vocab_size, Params())
    if torch.cuda.is_available() and args.device != "cpu":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        score(sequences)
        out.put(torch.cuda.max_memory_allocated() - before)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # forget the high-water mark of loading the model
        before = status_bytes("VmRSS")
        score(sequences)
        out.put(status_bytes("VmHWM") - before)


def status_bytes(field: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def measure_memory(args: argparse.Namespace) -> dict:
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for kind in ("ours", "naive"):
        queue = context.Queue()
        process = context.Process(target=peak_bytes, args=(kind, args, queue))
        process.start()
        peaks[kind] = queue.get()
        process.join()
    return {
        "peak_mib_ours": round(peaks["ours"] / 2**20),
        "peak_mib_naive": round(peaks["naive"] / 2**20),
        "peak_ratio": round(peaks["ours"] / peaks["naive"], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="model folder, or demo")
    parser.add_argument("--device", help="default: cuda where there is one, else cpu")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--sequences", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--completion", type=int, default=128)
    parser.add_argument("--max-batch-tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.model = str(model_folder(args.model))
    result = {"model": Path(args.model).name, "dtype": args.dtype, **measure_memory(args), **time_rounds(args)}
    if args.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:30} {value}")


if __name__ == "__main__":
    main()
