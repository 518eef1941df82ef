"""Output embeddings: one whose logits are float32, and exact where a logprob rests on them, and a narrow one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tracekit.scoring.selection import largest_ids

_NUM_EXACT = 8
# Float32 sums of thousands of products are good to 1e-5 up to about this size; beyond, the likely ones need more.
_LARGE = 8.0


class Float32Head(nn.Module):
    """Takes an output embedding's place; hidden states may be of any dtype.

    On a GPU, half-precision hidden states and weights are multiplied as they are into float32 sums: their products
    are exact there, and no float32 copy of the weights is needed. Elsewhere the weights are copied.
    """

    def __init__(self, embedding: Any) -> None:
        super().__init__()
        weight, bias = embedding.weight.detach(), getattr(embedding, "bias", None)
        self._multiplies_halves = _multiplies_halves(weight)
        # A copy of its own: a tied weight must not change dtype with the head.
        self.weight = nn.Parameter(weight if self._multiplies_halves else weight.float().clone(), requires_grad=False)
        self.bias = None if bias is None else nn.Parameter(bias.detach().float().clone(), requires_grad=False)
        self.token_ids: Tensor | None = None
        """[R] int64 tokens whose logits have to be exact, one per row; set while a chunk goes through."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] hidden states to [..., V] float32 logits."""
        rows = hidden.flatten(0, -2)
        if self._multiplies_halves and rows.dtype == self.weight.dtype:
            logits = torch.mm(rows, self.weight.T, out_dtype=torch.float32)
            if self.bias is not None:
                logits += self.bias
        else:
            logits = nn.functional.linear(rows.float(), self.weight.float(), self.bias)
        self._make_exact(logits, rows)
        return logits.view(*hidden.shape[:-1], -1)

    def _make_exact(self, logits: Tensor, hidden: Tensor) -> None:
        """Compute the largest logits of each row and that of its recorded token in float64 where they are large."""
        columns = largest_ids(logits, _NUM_EXACT)
        if self.token_ids is not None and len(self.token_ids) == len(logits):
            columns = torch.cat([columns, self.token_ids.unsqueeze(1)], dim=1)
        rows = (logits.gather(1, columns).abs().amax(dim=1) > _LARGE).nonzero().squeeze(1)
        columns = columns[rows]
        exact = (self.weight[columns].double() @ hidden[rows].double().unsqueeze(2)).squeeze(2)
        if self.bias is not None:
            exact += self.bias[columns]
        logits[rows.unsqueeze(1), columns] = exact.float()


class RoundedHead(nn.Module):
    """The same in a narrow type, as an engine computes it whose head has no other: inputs, weights and logits rounded.

    Products are exact in float32, and are added up in it, as kernels of a narrow type do.
    """

    def __init__(self, head: Float32Head, dtype: str) -> None:
        super().__init__()
        self._dtype = getattr(torch, dtype)
        self.weight = nn.Parameter(head.weight.to(self._dtype).float(), requires_grad=False)
        self.bias = None if head.bias is None else head.bias.to(self._dtype).float()
        self.token_ids: Tensor | None = None

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., H] hidden states to [..., V] logits that the narrow type holds, as float32."""
        logits = nn.functional.linear(hidden.to(self._dtype).float(), self.weight, self.bias)
        return logits.to(self._dtype).float()


def _multiplies_halves(weight: Tensor) -> bool:
    """Whether torch has a product of these weights with float32 results."""
    if not weight.is_cuda or weight.dtype not in (torch.bfloat16, torch.float16):
        return False
    try:
        torch.mm(weight[:8], weight[:8].T, out_dtype=torch.float32)
    except (TypeError, RuntimeError):  # a torch before 2.8, or a card that cannot
        return False
    return True
