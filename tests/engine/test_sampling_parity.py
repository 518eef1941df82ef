"""Processed logprobs against vLLM's own sampler, run for real in the engine environments."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.distribution import processed_logprobs
from helpers.engine import JOBS
from tracekit.engines.env import ensure
from tracekit.scoring.params import parse_params
from tracekit.scoring.sampling import Segment

pytestmark = pytest.mark.engine

EACH_ALONE = {
    "plain": {},
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.7},
    "top_p": {"top_p": 0.9},
    "top_k": {"top_k": 5},
    "top_k_whole_vocabulary": {"top_k": 10**6},
    "top_k_one": {"top_k": 1},
    "top_p_tiny": {"top_p": 1e-4},
    "min_p": {"min_p": 0.05},
    "repetition": {"repetition_penalty": 1.3},
    "repetition_reward": {"repetition_penalty": 0.8},
    "frequency": {"frequency_penalty": 0.6},
    "presence": {"presence_penalty": -0.9},
    "logit_bias": {"logit_bias": {"3": 5.0, "17": -100.0}},
    "allowed": {"allowed_token_ids": [2, 5, 60, 61]},
    "bad_word": {"bad_words_token_ids": [[7], [4, 9], [1, 2, 3, 8]]},
    "min_tokens": {"min_tokens": 4, "all_stop_token_ids": [2, 77]},
}
EDGE = 3e-6  # of probability; how the last bits of 49,152 sums fall is not the same in every process
SMALLEST_LOGPROB = -87.0
CHOICES = {
    "temperature": [0.0, 0.5, 0.7, 1.0, 1.3],
    "top_p": [0.3, 0.8, 0.95, 1.0],
    "top_k": [0, 1, 7, 40],
    "min_p": [0.0, 0.02, 0.2],
    "repetition_penalty": [1.0, 1.2, 0.9],
    "frequency_penalty": [0.0, 0.4, -0.3],
    "presence_penalty": [0.0, 0.7],
    "logit_bias": [None, {"5": 2.5, "9": -3.0}],
    "allowed_token_ids": [None, None, list(range(0, 150, 2))],
    "bad_words_token_ids": [None, [[7], [4, 9]]],
    "min_tokens": [0, 3],
}


def make_row(sampling: dict, rng: np.random.Generator) -> dict:
    """A row whose short alphabet makes penalties and bad words bite."""
    output = rng.integers(1, 10, int(rng.integers(0, 9))).tolist()
    if rng.random() < 0.5:
        output += [1, 2, 3]
    return {"sampling": sampling, "prompt": rng.integers(0, 20, 6).tolist(), "output": output}


def make_batches(rng: np.random.Generator) -> tuple[list[list[dict]], list[int]]:
    """Batches of rows, and the vocabulary of each."""
    alone = [[make_row(sampling, rng) for _ in range(4)] for sampling in EACH_ALONE.values()]
    combined = []
    for _ in range(64):
        sampling = {name: values[rng.integers(len(values))] for name, values in CHOICES.items()}
        sampling = {name: value for name, value in sampling.items() if value is not None}
        combined.append(make_row({**sampling, "all_stop_token_ids": [2, 77]}, rng))
    truncated = [make_row(dict(temperature=0.7, top_p=float(p)), rng) for p in np.linspace(0.05, 0.99, 24)]
    batches = [*alone, [row[0] for row in alone], combined, truncated]
    return batches, [160] * (len(batches) - 1) + [49_152]


def ours(rows: list[dict], logits: np.ndarray) -> np.ndarray:
    segments = [
        Segment(
            parse_params(row["sampling"]),
            np.array(row["prompt"], np.uint32),
            np.array([*row["output"], 0], np.uint32),
            len(row["output"]),
            len(row["output"]) + 1,
        )
        for row in rows
    ]
    return processed_logprobs(torch.from_numpy(logits), segments).numpy()


def on_the_edge(row: dict, logits: np.ndarray, token: int) -> bool:
    """Whether a nucleus ends at this token as closely as a float32 sum over the vocabulary can tell."""
    scaled = logits.astype(np.float64) / row["sampling"]["temperature"]
    probs = np.exp(scaled - scaled.max())
    mass = probs[scaled <= scaled[token]].sum() / probs.sum()
    return abs(mass - (1 - row["sampling"]["top_p"])) < EDGE


def with_their_edge(row: dict, logits: np.ndarray, got: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Our logprobs over the tokens that vLLM kept, where the two differ by tokens on the edge alone."""
    odd = np.flatnonzero(np.isfinite(got) != kept)
    if not len(odd) or not all(on_the_edge(row, logits, token) for token in odd):
        return got
    scaled = np.where(kept, logits / np.float32(row["sampling"]["temperature"]), -np.inf)
    return torch.from_numpy(scaled).log_softmax(dim=-1).numpy()


@pytest.mark.parametrize("engine", ["v1", "latest"])
def test_processed_logprobs_are_those_of_vllm(engine: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    batches, vocabularies = make_batches(rng)
    logits = [
        (rng.standard_normal((len(rows), vocabulary)) * 3).astype(np.float32)
        for rows, vocabulary in zip(batches, vocabularies, strict=True)
    ]
    np.savez(tmp_path / "in.npz", **{f"logits{i}": values for i, values in enumerate(logits)})
    (tmp_path / "job.json").write_text(json.dumps(batches))
    env = ensure(engine)
    script = JOBS / "vllm_sampler.py"
    done = subprocess.run(
        [env.python, script, tmp_path / "in.npz", tmp_path / "job.json", tmp_path / "out.npz"],
        env={**os.environ, **env.environ},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs = np.load(tmp_path / "out.npz")
    assert len(theirs) == len(batches)
    names = [*EACH_ALONE, "one of each", "combined", "truncated"]
    for i, (name, rows) in enumerate(zip(names, batches, strict=True)):
        expected, got = theirs[f"logprobs{i}"], ours(rows, logits[i])
        assert expected.shape == got.shape
        kept = np.isfinite(expected)
        if name == "truncated":
            got = np.stack([with_their_edge(*each) for each in zip(rows, logits[i], got, kept, strict=True)])
        ours_kept = np.isfinite(got)
        assert ours_kept[kept].all(), f"{name}: vLLM keeps tokens that we drop"
        # Beside a row with top-p, vLLM drops from the others what has a float32 probability of exactly zero.
        assert (got[ours_kept & ~kept] < SMALLEST_LOGPROB).all(), f"{name}: we keep tokens that vLLM drops"
        np.testing.assert_allclose(got[kept], expected[kept], rtol=2e-6, atol=2e-6, err_msg=name)
