"""Attention of the last c of n positions over all n of them, by the fastest way that gives the right numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

_SCORE_BYTES = 64 << 20  # bound on the scores that attention by hand holds at a time


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attend by torch's own kernels.

    Args:
        query: [1, H, c, D] of the last c positions.
        key: [1, H_kv, n, D]
        value: [1, H_kv, n, D]
        mask: [c, n] bool, what is seen; None for everything up to each query.
        scaling: of the scores; None for 1 / sqrt(D).

    Returns:
        [1, H, c, D]
    """
    num, total, groups = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    on_gpu = query.device.type == "cuda"
    # Only the flash kernels of a GPU read a key head for many query heads without copying it.
    grouped = groups > 1 and on_gpu and mask is None and query.dtype != torch.float32 and value.shape[-1] <= 256
    if groups > 1 and not grouped:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    causal = mask is None and 1 < num == total
    bias = mask
    if mask is None and 1 < num < total:
        bias = causal_lower_right(num, total) if on_gpu else _lower_right(num, total)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=bias, is_causal=causal, scale=scaling, enable_gqa=grouped
    )


def attend_by_hand(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attend with soft-capped scores, or with a sink [H] that takes part in the softmax and is worth nothing.

    As transformers' eager attention of Gemma 2 and gpt-oss, some queries at a time; the rest as `attend`.
    """
    num, total, groups = query.shape[2], key.shape[2], query.shape[1] // key.shape[1]
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    seen = _lower_right(num, total, query.device) if mask is None else mask
    parts = []
    step = max(_SCORE_BYTES // (4 * query.shape[1] * total), 1)
    for begin in range(0, num, step):
        block = slice(begin, begin + step)
        scores = query[:, :, block] @ key.transpose(2, 3) * scale
        if softcap is not None:
            scores = (scores / softcap).tanh() * softcap
        scores = scores.float().masked_fill(~seen[block], -torch.inf)
        if sinks is not None:
            column = sinks.float().reshape(1, -1, 1, 1).expand(*scores.shape[:3], 1)
            scores = torch.cat([scores, column], dim=-1)
        weights = scores.softmax(dim=-1)[..., :total]
        parts.append(weights.to(query.dtype) @ value)
    return torch.cat(parts, dim=2)


def _lower_right(num: int, total: int, device: torch.device | str = "cpu") -> Tensor:
    """[num, total] bool: the last query sees everything, the one before it one key fewer."""
    return torch.ones(num, total, dtype=torch.bool, device=device).tril_(total - num)
