"""The processed scores of a block of rows: what a recorded token is worth in the kept set, at its edge, and outside."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tracekit.scoring.sweep import Sums
from tracekit.scoring.truncation import Kept, Limits, truncate


@dataclass(frozen=True, eq=False)
class Drawn:
    """The recorded token of each row of a block, [r] each."""

    token_ids: Tensor
    """int64"""
    logit: Tensor
    """float64, as if no mask barred the token."""
    best: Tensor
    """float64, the largest logit that no mask bars."""
    gap: Tensor
    """float64, (logit - best) / temperature."""
    is_best: Tensor
    """bool, whether sums leave this token out."""
    barred: Tensor
    """bool, whether a mask bars it."""
    log_all: Tensor
    """float64 log of the sum of exp((logit - best) / temperature) over all tokens, barred ones too."""

    def unmasked(self, before: Drawn, temperature: Tensor) -> Drawn:
        """Return the token with what it was before the masks."""
        shift = (before.best - self.best) / temperature.double()
        gap = (before.logit - self.best) / temperature.double()
        barred = self.logit == -torch.inf
        return Drawn(self.token_ids, before.logit, self.best, gap, self.is_best, barred, before.log_all + shift)


def drawn_from(rows: Tensor, token_ids: Tensor, sums: Sums, temperature: Tensor) -> Drawn:
    """Look up the recorded tokens in a block of [r, V] logits."""
    logit = rows.gather(1, token_ids.unsqueeze(1)).squeeze(1).double()
    best = sums.best.double()
    is_best = token_ids == sums.best_token
    barred = torch.zeros_like(is_best)
    return Drawn(token_ids, logit, best, (logit - best) / temperature.double(), is_best, barred, sums.log_total)


def processed(rows: Tensor, sums: Sums, limits: Limits, drawn: Drawn) -> dict[str, Tensor]:
    """Score the recorded tokens of a block of [r, V] logits, -inf where a mask bars a token.

    Returns:
        [r] columns of `Scores` by name, those of the raw distribution left out.
    """
    truncates, kept = _kept(rows, sums, limits)
    inside = _is_inside(rows, kept, drawn)
    log_kept = kept.rest.log1p()
    log_forced = torch.where(inside, log_kept, torch.logaddexp(log_kept, drawn.gap))
    own = (drawn.gap - log_kept).masked_fill(~inside, -torch.inf)
    edge = torch.where(truncates.unsqueeze(1), _edge(kept, drawn, inside, log_kept), own.unsqueeze(1))
    gain = noise_gain(kept.rest, kept.squares, drawn, inside, log_forced)
    return {
        "processed_logprob": own.float(),
        "forced_logprob": (drawn.gap - log_forced).float(),
        "kept_count": kept.count,
        "kept_mass": (log_kept - drawn.log_all).exp().float(),
        "processed_noise_gain": gain / limits.temperature,
        "edge_logprobs": edge,
    }


def noise_gain(rest: Tensor, squares: Tensor, drawn: Drawn, inside: Tensor, log_total: Tensor) -> Tensor:
    """[r] float32 sqrt((1 - p)^2 + sum of p_j^2 over the others): the gradient's length of a logprob in the logits.

    Args:
        rest: weights of the kept tokens but the best.
        squares: their squares.
        drawn: the tokens whose logprobs these are.
        inside: whether they are in the kept set.
        log_total: log of the weights of the kept set with them in it.
    """
    weight = torch.where(inside, drawn.gap.exp(), 0.0)
    others = rest + torch.where(drawn.is_best, 0.0, 1 - weight)
    their_squares = squares + torch.where(drawn.is_best, 0.0, 1 - weight.square())
    return ((others.square() + their_squares).sqrt() * (-log_total).exp()).float()


def _kept(rows: Tensor, sums: Sums, limits: Limits) -> tuple[Tensor, Kept]:
    """[r] whether a row is truncated, and the kept sets of all rows."""
    truncates = (limits.min_p > 0) | (limits.top_k > 0) | (limits.top_p < 1)
    if bool(truncates.all()):
        return truncates, truncate(rows, sums, limits)
    nowhere = torch.full_like(sums.rest, -torch.inf)
    # Masks bar what is -inf; a comparison of all of the block is needed only where there is any.
    count = torch.full_like(sums.best_token, rows.shape[1])
    if bool((rows.amin(dim=-1) == -torch.inf).any()):
        count = (rows > -torch.inf).sum(dim=-1)
    kept = Kept(count, sums.rest.clone(), sums.squares.clone(), nowhere, nowhere.clone(), torch.zeros_like(count))
    if len(which := truncates.nonzero().squeeze(1)):
        kept.put(which, truncate(rows[which], sums[which], limits[which]))
    return truncates, kept


def _is_inside(rows: Tensor, kept: Kept, drawn: Drawn) -> Tensor:
    """[r] whether the recorded token is in the kept set."""
    inside = (drawn.gap >= kept.last) & ~drawn.barred
    # Among equal logits at the edge, vLLM's stable choice is ours: those of the lowest ids go.
    for i in (inside & (drawn.gap == kept.last) & (kept.num_tied > 0)).nonzero().squeeze(1).tolist():
        token = int(drawn.token_ids[i])
        inside[i] = (rows[i, :token] == rows[i, token]).sum() >= kept.num_tied[i]
    return inside


def _edge(kept: Kept, drawn: Drawn, inside: Tensor, log_kept: Tensor) -> Tensor:
    """[r, 2] float64 logprob of the token with the least likely kept token gone, and with the next one let in."""
    alone = kept.count == 1
    fewer_total = torch.where(alone, log_kept, log_kept + torch.log1p(-(kept.last - log_kept).exp().clamp(max=1.0)))
    fewer = (drawn.gap - fewer_total).masked_fill(~(inside & (alone | (drawn.gap > kept.last))), -torch.inf)
    lets_in = (drawn.gap == kept.next) & (kept.next > -torch.inf) & ~drawn.barred
    more = (drawn.gap - torch.logaddexp(log_kept, kept.next)).masked_fill(~(inside | lets_in), -torch.inf)
    return torch.stack([fewer, more], dim=1)
