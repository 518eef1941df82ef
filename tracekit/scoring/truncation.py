"""Min-p, top-k and top-p on fp32 logits with different parameters a row, as vLLM V1 does them."""

from __future__ import annotations

import torch
from torch import Tensor

_HEAD = 1024  # candidates looked at before the whole vocabulary is sorted


def truncate(logits: Tensor, *, min_p: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Put -inf where a token is dropped: first by min-p, then by top-k, then by top-p; the best token stays.

    Args:
        logits: [R, V] float32 after temperature, -inf where a mask bars the token; not changed.
        min_p: [R] float32, 0 drops nothing.
        top_k: [R] int64, 0 or V and more drops nothing; ties with the k-th stay.
        top_p: [R] float32, 1 drops nothing.

    Returns:
        [R, V] float32, a new tensor.
    """
    kept = logits.clone()
    for needed, apply, values in (
        (min_p > 0, _min_p, min_p),
        ((top_k > 0) & (top_k < logits.shape[1]), _top_k, top_k),
        (top_p < 1, _top_p, top_p),
    ):
        rows = needed.nonzero().squeeze(1)
        if len(rows) == len(kept):
            kept = apply(kept, values)
        elif len(rows):
            kept[rows] = apply(kept[rows], values[rows])
    return kept


def _min_p(logits: Tensor, min_p: Tensor) -> Tensor:
    probs = logits.softmax(dim=-1)
    return logits.masked_fill(probs < probs.amax(dim=-1, keepdim=True) * min_p.unsqueeze(1), -torch.inf)


def _top_k(logits: Tensor, top_k: Tensor) -> Tensor:
    best = logits.topk(int(top_k.max()), dim=-1).values
    return logits.masked_fill(logits < best.gather(1, (top_k - 1).unsqueeze(1)), -torch.inf)


def _top_p(logits: Tensor, top_p: Tensor) -> Tensor:
    # Sorting a vocabulary costs a CPU eight times what finding its head does; a GPU has no such gap.
    if logits.device.type != "cpu" or logits.shape[1] < 4 * _HEAD:
        return _top_p_by_sort(logits, top_p)
    kept, settled = _top_p_by_head(logits, top_p)
    if not settled.all():
        kept[~settled] = _top_p_by_sort(logits[~settled], top_p[~settled])
    return kept


def _top_p_by_sort(logits: Tensor, top_p: Tensor) -> Tensor:
    """Drop from the least likely up, as long as what was dropped adds up to no more than 1 - p."""
    # vLLM's own sort is not stable, so which of two equal logits it drops is the platform's choice: ours is fixed.
    ordered, index = logits.sort(dim=-1, stable=True)
    mass = ordered.softmax(dim=-1).cumsum(dim=-1)
    dropped = mass <= 1 - top_p.unsqueeze(1)
    dropped[:, -1] = False
    return torch.full_like(logits, -torch.inf).scatter_(1, index, ordered.masked_fill_(dropped, -torch.inf))


def _top_p_by_head(logits: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Do the same from the head of the vocabulary alone.

    Returns:
        [R, V] kept logits, and [R] bool: whether the edge of the kept set lies inside the head (where it does not,
        the row of the first result means nothing).
    """
    values, index = logits.topk(_HEAD, dim=-1)
    # Equal logits are dropped lowest id first, as a stable ascending sort of the whole row would.
    index = index.sort(dim=-1).values
    values, order = logits.gather(1, index).sort(dim=-1, stable=True)
    index = index.gather(1, order)
    best = values[:, -1:]
    weights = (values - best).exp()
    total = (logits - best).exp_().sum(dim=-1, keepdim=True, dtype=torch.float64)
    tail = total - weights.sum(dim=-1, keepdim=True, dtype=torch.float64)
    mass = ((tail + weights.cumsum(dim=-1, dtype=torch.float64)) / total).float()
    limit = 1 - top_p.unsqueeze(1)
    dropped = mass <= limit
    dropped[:, -1] = False
    edge = values.masked_fill(dropped, torch.inf).amin(dim=-1)
    settled = ((tail / total).float() <= limit).squeeze(1) & (edge > values[:, 0])
    kept = torch.full_like(logits, -torch.inf).scatter_(1, index, values.masked_fill(dropped, -torch.inf))
    return kept, settled
