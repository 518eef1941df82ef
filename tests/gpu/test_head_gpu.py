"""Head, sweep and truncation on a GPU: exact, without a float32 copy of the head, and as on a CPU."""

import numpy as np
import pytest
import torch
from torch import nn

from tracekit.scoring.float32_head import Float32Head
from tracekit.scoring.params import Params
from tracekit.scoring.rows import score_rows
from tracekit.scoring.sampling import Segment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def segments_of(params: Params, token_ids: torch.Tensor) -> list[Segment]:
    tokens = token_ids.cpu().numpy().astype(np.uint32)
    return [Segment(params, np.array([1], np.uint32), tokens, 0, len(tokens))]


@pytest.mark.parametrize(
    ("vocab_size", "width", "spread"), [(262_144, 640, 4.0), (262_144, 640, 12.0), (151_936, 4_096, 12.0)]
)
def test_the_head_is_near_float64(vocab_size: int, width: int, spread: float) -> None:
    torch.manual_seed(0)
    embedding = nn.Linear(width, vocab_size, bias=False, dtype=torch.bfloat16, device="cuda")
    hidden = (torch.randn(64, width, device="cuda") * spread / width**0.5).bfloat16()
    with torch.inference_mode():
        embedding.weight.normal_()
        logits = hidden.double() @ embedding.weight.double().T
        exact = logits.log_softmax(dim=-1)
        head = Float32Head(embedding)
        likely = logits.topk(20, dim=-1).indices[:, [0, 1, 7, 8, 19]].T
        for token_ids in [*likely, exact.argmin(dim=-1), torch.arange(64, device="cuda")]:
            head.token_ids = token_ids
            (scores,) = score_rows(head(hidden), token_ids, [segments_of(Params(), token_ids)])
            expected = exact.gather(1, token_ids.unsqueeze(1)).squeeze(1)
            # tensor cores add in less than float32: 1e-5 failed on an H200, where a bfloat16 head is off by 7e-3
            assert (scores.raw_logprob - expected).abs().max() <= 4e-5


def test_a_bfloat16_head_is_not_copied() -> None:
    embedding = nn.Linear(640, 262_144, bias=False, dtype=torch.bfloat16, device="cuda")
    before = torch.cuda.memory_allocated()
    head = Float32Head(embedding)
    assert torch.cuda.memory_allocated() - before < 1 << 20
    assert head(torch.zeros(2, 640, dtype=torch.bfloat16, device="cuda")).dtype == torch.float32


@pytest.mark.parametrize(
    "params",
    [
        Params(),
        Params(temperature=0.7, top_p=0.9),
        Params(top_p=0.95),
        Params(top_k=300, top_p=0.8),
        Params(min_p=1e-3),
        Params(top_p=0.9, allowed_token_ids=tuple(range(0, 17_000, 2)), frequency_penalty=0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("spread", [1.0, 5.0])
def test_scores_are_those_of_a_cpu(params: Params, spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 49_155, generator=generator) * spread
    token_ids = torch.randint(0, 49_155, (40,), generator=generator)
    token_ids[:20] = logits[:20].topk(4).indices[:, 2]
    (gpu,) = score_rows(logits.cuda(), token_ids.cuda(), [segments_of(params, token_ids)])
    (cpu,) = score_rows(logits.clone(), token_ids, [segments_of(params, token_ids)])
    assert (gpu.kept_count.cpu() - cpu.kept_count).abs().max() <= 1
    for name in ("raw_logprob", "forced_logprob", "entropy", "kept_mass", "raw_noise_gain", "processed_noise_gain"):
        torch.testing.assert_close(getattr(gpu, name).cpu(), getattr(cpu, name), rtol=1e-4, atol=1e-4, msg=name)
