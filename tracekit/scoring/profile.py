"""Profiles of rows of raw logits: see `tracekit.scoring.layout`."""

from __future__ import annotations

import torch
from torch import Tensor

from tracekit.scoring.layout import BEST, BETAS, GAPS, IDS, NUM_TOP, OWN, TAIL, WIDTH
from tracekit.scoring.selection import largest_ids

_BLOCK_BYTES = 16 << 20  # of logits at a time: the tail is summed over a copy of them


def profile_rows(logits: Tensor, token_ids: Tensor) -> Tensor:
    """[R, WIDTH] float32 profiles.

    Args:
        logits: [R, V] float32 raw logits, left as they are.
        token_ids: [R] int64, the recorded token of each row.
    """
    step = max(_BLOCK_BYTES // (4 * logits.shape[1]), 1)
    parts = [
        _profile(logits[first : first + step], token_ids[first : first + step]) for first in range(0, len(logits), step)
    ]
    return torch.cat(parts) if parts else logits.new_empty(0, WIDTH)


def _profile(logits: Tensor, token_ids: Tensor) -> Tensor:
    found = logits.new_full((len(logits), WIDTH), -torch.inf)
    found[:, IDS] = -1
    ids = largest_ids(logits, NUM_TOP)
    values, order = logits.gather(1, ids).sort(dim=-1, descending=True)
    best, num = values[:, 0], values.shape[1]
    found[:, BEST] = best
    found[:, OWN] = logits.gather(1, token_ids.unsqueeze(1)).squeeze(1) - best
    found[:, GAPS.start : GAPS.start + num] = values - best.unsqueeze(1)
    found[:, IDS.start : IDS.start + num] = ids.gather(1, order).float()
    if num < logits.shape[1]:
        rest = (logits - best.unsqueeze(1)).scatter_(1, ids, -torch.inf)
        found[:, TAIL] = torch.stack([torch.logsumexp(rest * beta, dim=-1) for beta in BETAS], dim=1)
    return found
