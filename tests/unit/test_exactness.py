"""Raw logprobs against a float64 head and log-softmax on the same hidden states."""

import numpy as np
import pytest
import torch
from torch import nn

from tracekit.scoring.float32_head import Float32Head
from tracekit.scoring.params import Params
from tracekit.scoring.rows import score_rows
from tracekit.scoring.sampling import Segment


@pytest.mark.parametrize(
    ("vocab_size", "width", "spread"),
    [(262_144, 64, 2.0), (262_144, 64, 12.0), (8_192, 2_048, 16.0), (2_048, 8_192, 16.0)],
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_no_token_is_off_by_1e_5_nat(vocab_size: int, width: int, spread: float, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    embedding = nn.Linear(1, 1, bias=has_bias)
    embedding.weight = nn.Parameter(torch.randn(vocab_size, width, generator=generator).bfloat16())
    if has_bias:
        embedding.bias = nn.Parameter(torch.randn(vocab_size, generator=generator).bfloat16())
    hidden = (torch.randn(8, width, generator=generator) * spread / width**0.5).bfloat16()
    with torch.inference_mode():
        logits = hidden.double() @ embedding.weight.double().T
        logits = logits if embedding.bias is None else logits + embedding.bias
        exact = logits.log_softmax(dim=-1)
        head = Float32Head(embedding)
        likely = exact.topk(20, dim=-1).indices[:, [0, 1, 7, 8, 19]].T
        for token_ids in [*likely, exact.argmin(dim=-1), torch.arange(8)]:
            head.token_ids = token_ids
            segments = [Segment(Params(), np.array([1], np.uint32), token_ids.numpy().astype(np.uint32), 0, 8)]
            (scores,) = score_rows(head(hidden), token_ids, [segments])
            expected = exact.gather(1, token_ids.unsqueeze(1)).squeeze(1)
            assert (scores.raw_logprob - expected).abs().max() <= 1e-5
    assert logits.max() > 3 * spread
