"""How much faster two workers of one thread each score a run than one: the target is 0.9 of twice.

The same units go through the mapper of `tracekit replay --workers`, one Ray for each; what is timed begins when the
workers can, and includes that each loads the model. Rounds alternate, and the median of their ratios counts.

    python bench/workers.py [--rounds 3] [--rollouts 256]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np

from tracekit.replay.scorers import torch_loader
from tracekit.replay.units import Job, Model, Stage, Unit
from tracekit.replay.workers import on_ray
from tracekit.scoring.params import Params
from tracekit.scoring.types import Sequence


def make_units(num_rollouts: int, vocab_size: int) -> list[Unit]:
    """Units of one group of eight rollouts each: prompts of 64 to 256 tokens, completions log-normal around 128."""
    rng = np.random.default_rng(0)
    units = []
    for first in range(0, num_rollouts, 8):
        prompt = rng.integers(3, vocab_size, rng.integers(64, 257)).astype("u4")
        jobs = []
        for request in range(first, first + 8):
            length = int(np.clip(rng.lognormal(np.log(128), 0.5), 8, 512))
            completion = rng.integers(3, vocab_size, length).astype("u4")
            stage = Stage(0, 0, len(prompt) + length - 1, (0, length))
            jobs.append(Job(Sequence(0, request, prompt, completion, Params()), (stage,), (("trainer", Params()),)))
        units.append(Unit(Model("float32"), 2048, True, tuple(jobs)))
    return units


def seconds(workers: int, folder: Path, units: list[Unit]) -> float:
    """Score all units with so many workers, which have begun when the clock starts."""
    begun: list[float] = []
    mapper = on_ray(str(workers), torch_loader("cpu"), {0: str(folder)}, threads=1, gpus=False,
                    on_loaded=lambda: begun.append(time.perf_counter()))  # fmt: skip
    for _ in mapper(units, lambda unit, num_tokens: None):
        pass_end = time.perf_counter()
    return pass_end - begun[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rollouts", type=int, default=256)
    parser.add_argument("--model", type=Path, help="a model folder; the default is a random one of 4 layers")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temp:
        folder = given.model or write_model(Path(temp))
        units = make_units(given.rollouts, 4096)
        run = partial(seconds, folder=folder, units=units)
        ratios = []
        for number in range(given.rounds):
            one, two = (run(1), run(2)) if number % 2 == 0 else reversed((run(2), run(1)))
            ratios.append(one / two)
            print(f"round {number + 1}: one worker {one:.1f} s, two {two:.1f} s: {one / two:.2f} times as fast")
    speedup = statistics.median(ratios)
    print(f"two workers are {speedup:.2f} times as fast as one: {speedup / 2:.2f} of linear (target 0.9)")


def write_model(folder: Path) -> Path:
    """A random Llama of 25 million parameters, so that a round takes a minute."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=4096, hidden_size=512, intermediate_size=1536, num_hidden_layers=6,
                         num_attention_heads=8, num_key_value_heads=4)  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "random-llama")
    return folder / "random-llama"


if __name__ == "__main__":
    main()
