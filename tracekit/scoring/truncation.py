"""Min-p, top-k and top-p with different parameters a row, as vLLM V1 does them: where the kept set of a row ends.

A kept set is the row's largest logits, so its edge and its sums follow from a stretch of the row's sorted values: the
head of the vocabulary settles nearly every row; in a flat one, a sample says between which values the edge lies.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from tracekit.scoring.selection import between, descending, largest
from tracekit.scoring.sweep import Sums

_HEAD = 128  # most nuclei of a trained model end before
_SAMPLE = 4096
_MARGIN = 96  # three standard deviations of where a quantile falls in the sample


@dataclass(frozen=True, eq=False)
class Limits:
    """What truncates each row, [r] each."""

    temperature: Tensor
    """float32"""
    min_p: Tensor
    """float32, 0 drops nothing."""
    top_k: Tensor
    """int64, 0 or V and more drops nothing; ties with the k-th stay."""
    top_p: Tensor
    """float32, 1 drops nothing."""

    def __getitem__(self, rows: slice | Tensor) -> Limits:
        """Return the limits of some rows."""
        return Limits(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class Kept:
    """The kept set of each row, [r] each; gaps are (logit - best logit) / temperature in float64."""

    count: Tensor
    """int64"""
    rest: Tensor
    """float64 weights of the kept tokens but the best."""
    squares: Tensor
    """float64, their squares."""
    last: Tensor
    """Gap of the least likely kept token; -inf where nothing truncates."""
    next: Tensor
    """Gap of the most likely dropped token; -inf where none is left."""
    num_tied: Tensor
    """int64, dropped tokens as likely as the last kept one: of those with its logit, the ones of the lowest ids."""

    def put(self, rows: Tensor, other: Kept) -> None:
        """Replace the rows at some indices."""
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(other, field.name)


def truncate(logits: Tensor, sums: Sums, limits: Limits) -> Kept:
    """Drop first by min-p, then by top-k, then by top-p; the best token stays.

    Args:
        logits: [r, V] float32, -inf where a mask bars the token.
        sums: of these rows, at the temperatures of the limits.
        limits: what truncates each row.
    """
    top_k = limits.top_k.masked_fill(limits.top_k >= logits.shape[1], 0)
    limits = Limits(limits.temperature, limits.min_p, top_k, limits.top_p)
    values = largest(logits, max(_HEAD, int(top_k.max()) + 1))
    kept, settled = _cut(_gaps(values, sums.best, limits), limits, 1 + sums.rest, values.shape[1] == logits.shape[1])
    alone = (limits.min_p == 0) & (top_k == 0)  # by top-p alone
    if logits.shape[1] >= 4 * _SAMPLE and len(rows := (alone & ~settled).nonzero().squeeze(1)):
        part, settled[rows] = _cut_near_sample(logits, sums, limits, rows)
        kept.put(rows, part)
    if len(rows := (~settled).nonzero().squeeze(1)):
        values = descending(logits[rows])
        part, _ = _cut(_gaps(values, sums.best[rows], limits[rows]), limits[rows], 1 + sums.rest[rows], True)
        kept.put(rows, part)
    return kept


def _gaps(values: Tensor, best: Tensor, limits: Limits) -> Tensor:
    return (values.double() - best.double().unsqueeze(1)) / limits.temperature.double().unsqueeze(1)


def _cut(gaps: Tensor, limits: Limits, total: Tensor, whole: bool) -> tuple[Kept, Tensor]:
    """Find the edge among the largest tokens.

    Args:
        gaps: [r, W] of the largest tokens in descending order.
        limits: of the rows.
        total: [r] float64 weights of all tokens.
        whole: whether there are no other tokens.

    Returns:
        The kept sets, and [r] bool: where it is False, the edge lies beyond these tokens and the row means nothing.
    """
    weights = gaps.exp()
    kth = gaps.gather(1, (limits.top_k.unsqueeze(1) - 1).clamp(min=0))
    kth = kth.masked_fill(limits.top_k.unsqueeze(1) == 0, -torch.inf)
    stays = (weights >= limits.min_p.unsqueeze(1)) & (gaps >= kth) & (gaps > -torch.inf)
    weights = weights * stays
    ends_here = ~stays[:, -1] | whole
    total = torch.where(ends_here, weights.sum(dim=-1), total)
    # Min-p has dropped tokens beyond these if it has a cut there at all: what top-p goes by is not known then.
    known = ends_here | (limits.min_p == 0)
    nucleus = total.unsqueeze(1) - (weights.cumsum(dim=-1) - weights) > _share_dropped(limits, total).unsqueeze(1)
    stays &= nucleus | (limits.top_p == 1).unsqueeze(1)
    stays[:, 0] = True
    weights[:, 0] = 0.0
    kept = _kept(gaps, stays, weights)
    return kept, known & (whole | (kept.last > gaps[:, -1]))


def _cut_near_sample(logits: Tensor, sums: Sums, limits: Limits, rows: Tensor) -> tuple[Kept, Tensor]:
    """Find the edge of flat rows that only top-p truncates; arguments as for `truncate`, results as of `_cut`."""
    sums, limits = sums[rows], limits[rows]
    logits = logits if len(rows) == len(logits) else logits[rows]
    total = 1 + sums.rest
    dropped = _share_dropped(limits, total)
    stride = logits.shape[1] // _SAMPLE
    # From the least likely up: a sample misses the few likely ones, but none of these is among what is dropped.
    ascending = descending(logits[:, ::stride]).flip(-1)
    mass = _gaps(ascending, sums.best, limits).exp().cumsum(dim=-1) * stride
    edge = (mass <= dropped.unsqueeze(1)).sum(dim=-1, keepdim=True)
    low = ascending.gather(1, (edge - _MARGIN).clamp(min=0))
    at_high = edge + _MARGIN
    is_head = at_high >= ascending.shape[1]
    high = ascending.gather(1, at_high.clamp(max=ascending.shape[1] - 1)).masked_fill_(is_head, torch.inf)
    values, num_above = between(logits, low.squeeze(1), high.squeeze(1))
    # max(weight, weight of high) has that of high for each token below: none has to be moved to leave them out.
    bound = _gaps(high, sums.best, limits).exp().float().masked_fill_(is_head, 1.0)
    weights = torch.maximum(sums.weights.scatter_(1, sums.best_token.unsqueeze(1), 1.0), bound)
    filling = bound.double().squeeze(1) * (logits.shape[1] - num_above)
    above = weights.sum(dim=-1).double() - filling
    squares = torch.linalg.vector_norm(weights, dim=-1).double().square() - filling * bound.double().squeeze(1)
    gaps = _gaps(values, sums.best, limits)
    weights = gaps.exp()
    before = above.unsqueeze(1) + weights.cumsum(dim=-1) - weights
    stays = total.unsqueeze(1) - before > dropped.unsqueeze(1)
    has_best = is_head.squeeze(1)
    weights[has_best, 0] = 0.0
    kept = _kept(gaps, stays, weights)
    kept.count.add_(num_above)
    kept.rest.add_((above - 1).masked_fill_(has_best, 0.0))
    kept.squares.add_((squares - 1).masked_fill_(has_best, 0.0))
    return kept, stays[:, 0] & (kept.next > -torch.inf)


def _share_dropped(limits: Limits, total: Tensor) -> Tensor:
    """[r] weight that top-p may drop; 1 - p in float32, as vLLM has it."""
    return (1 - limits.top_p).double() * total


def _kept(gaps: Tensor, stays: Tensor, weights: Tensor) -> Kept:
    """Describe kept sets that are the first so many of these tokens; the weight of the best is 0 here."""
    count = stays.sum(dim=-1)
    weights = weights * stays
    last = gaps.gather(1, (count - 1).clamp(min=0).unsqueeze(1))
    follows = gaps.gather(1, count.clamp(max=gaps.shape[1] - 1).unsqueeze(1)).squeeze(1)
    return Kept(
        count=count,
        rest=weights.sum(dim=-1),
        squares=weights.square().sum(dim=-1),
        last=last.squeeze(1),
        next=follows.masked_fill(count == gaps.shape[1], -torch.inf),
        num_tied=((gaps == last) & ~stays).sum(dim=-1),
    )
