"""The scorer on a GPU against the scorer on the CPU."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tracekit.scores import Scores, Values
from tracekit.scoring.params import parse_params
from tracekit.scoring.scorer import Scorer
from tracekit.scoring.spans import Span, whole
from tracekit.scoring.types import Sequence

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
VOCAB = 6000  # large enough for the CPU's way of finding the top-p edge


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.15,
        max_position_embeddings=512,
    )
    path = tmp_path_factory.mktemp("qwen3")
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


def some_sequences() -> list[Sequence]:
    rng = np.random.default_rng(0)
    kinds = [
        {},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.2, "top_k": 40, "min_p": 0.02},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": 0.1},
        {"logit_bias": {"7": 3.0}, "allowed_token_ids": list(range(0, VOCAB, 3)), "bad_words_token_ids": [[9, 12]]},
    ]
    return [
        Sequence(
            0,
            i,
            rng.integers(0, VOCAB, 20).astype(np.uint32),
            rng.integers(0, VOCAB, int(rng.integers(5, 60))).astype(np.uint32),
            parse_params(kinds[i % len(kinds)]),
        )
        for i in range(15)
    ]


def score(folder: Path, dtype: str, device: str) -> list[Scores[Values]]:
    spans = [whole(sequence) for sequence in some_sequences()]
    found = Scorer.load(folder, dtype=dtype, device=device).score(spans, max_batch_tokens=400)
    return [scores.readings[0] for scores in found]


def largest_difference(ours: list[Scores[Values]], theirs: list[Scores[Values]], name: str) -> float:
    return max(float(np.abs(getattr(a, name) - getattr(b, name)).max()) for a, b in zip(ours, theirs, strict=True))


def test_float32_scores_agree_between_gpu_and_cpu(folder: Path) -> None:
    gpu, cpu = score(folder, "float32", "cuda"), score(folder, "float32", "cpu")
    for name in ("raw_logprob", "raw_noise_gain"):
        assert largest_difference(gpu, cpu, name) < 2e-4, name
    kept = [(a.kept_count == b.kept_count).mean() for a, b in zip(gpu, cpu, strict=True)]
    assert np.mean(kept) > 0.98
    for a, b in zip(gpu, cpu, strict=True):
        same = a.kept_count == b.kept_count
        np.testing.assert_allclose(a.forced_logprob[same], b.forced_logprob[same], rtol=0, atol=5e-4)


def test_bfloat16_scores_agree_to_the_bodys_precision(folder: Path) -> None:
    gpu, cpu = score(folder, "bfloat16", "cuda"), score(folder, "bfloat16", "cpu")
    differences = np.concatenate([a.raw_logprob - b.raw_logprob for a, b in zip(gpu, cpu, strict=True)])
    assert 0 < np.abs(differences).mean() < 0.1


def test_a_gpu_scorer_against_itself_is_exactly_zero(folder: Path) -> None:
    first, second = score(folder, "bfloat16", "cuda"), score(folder, "bfloat16", "cuda")
    for name in ("raw_logprob", "forced_logprob", "processed_noise_gain"):
        assert largest_difference(first, second, name) == 0.0


def test_the_default_device_is_the_gpu(folder: Path) -> None:
    assert Scorer.load(folder).device.startswith("cuda")


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 0.2)])
def test_shared_prefixes_and_kept_kv_change_no_more_than_rounding(folder: Path, dtype: str, bound: float) -> None:
    rng = np.random.default_rng(1)
    prompt = rng.integers(0, VOCAB, 100).astype(np.uint32)
    completions = rng.integers(0, VOCAB, (4, 70)).astype(np.uint32)
    sequences = [Sequence(0, i, prompt, tokens, parse_params({})) for i, tokens in enumerate(completions)]
    scorer = Scorer.load(folder, dtype=dtype, device="cuda")
    assert scorer.packing == "packed", scorer.body.why_by_length
    spans = [whole(sequence) for sequence in sequences]
    shared, alone = (
        [found.readings[0] for found in scorer.score(spans, max_batch_tokens=4000, share=share)]
        for share in (True, False)
    )
    assert largest_difference(shared, alone, "raw_logprob") < bound
    head = Span(sequence=sequences[0], readings=spans[0].readings, stop=99, keep_kv=True)
    (kept,) = scorer.score([head], max_batch_tokens=4000)
    tail = replace(spans[0], start=99, past=kept.kv)
    (rest,) = scorer.score([tail], max_batch_tokens=4000)
    assert largest_difference([rest.readings[0]], [alone[0]], "raw_logprob") < bound
