"""From a chunk of raw logits to the scores of its recorded tokens."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from tracekit.scores import Scores
from tracekit.scoring.params import Params
from tracekit.scoring.sampling import Processed, Segment, process, row_values


def score_rows(logits: Tensor, token_ids: Tensor, readings: Seq[Seq[Segment]]) -> list[Scores[Tensor]]:
    """Score one recorded token a row, once for each way in which the sampling parameters are read.

    Args:
        logits: [R, V] float32 raw logits, overwritten.
        token_ids: [R] int64, the recorded token of each row.
        readings: for each reading, what the R rows are, in order.

    Returns:
        For each reading, scores of R tokens, as tensors on the device of the logits.
    """
    *others, last = readings
    return [*(_score(logits.clone(), token_ids, segments) for segments in others), _score(logits, token_ids, last)]


def _score(logits: Tensor, token_ids: Tensor, segments: Seq[Segment]) -> Scores[Tensor]:
    """Score one reading; overwrites the logits."""
    chosen = token_ids.unsqueeze(1)
    argmax = logits.argmax(dim=-1)
    all_raw = logits.log_softmax(dim=-1)
    raw = all_raw.gather(1, chosen).squeeze(1)
    raw_gain = _noise_gain(all_raw, chosen)
    del all_raw
    if all(segment.params == Params() for segment in segments):
        count = torch.full_like(argmax, logits.shape[1])
        return Scores(raw, raw, raw, count, argmax, raw_gain, raw_gain, torch.stack([raw, raw], dim=1))

    done = process(logits, segments)
    processed = done.survivors.log_softmax(dim=-1).gather(1, chosen).squeeze(1)
    kept_total = done.survivors.logsumexp(dim=-1).double()
    logit = done.logits.gather(1, chosen).squeeze(1).double()
    inside = done.survivors.gather(1, chosen).squeeze(1) > -torch.inf
    processed = processed.masked_fill(~inside, -torch.inf)
    forced_total = torch.where(inside, kept_total, torch.logaddexp(kept_total, logit))
    forced = torch.where(inside, processed, (logit - forced_total).float())
    truncates = row_values([s.params.truncates for s in segments], segments, logits.device).bool()
    edge = torch.where(truncates.unsqueeze(1), _edge(done, chosen, kept_total), processed.double().unsqueeze(1))
    gain = _noise_gain(done.survivors - forced_total.float().unsqueeze(1), chosen)
    return Scores(
        raw_logprob=raw,
        processed_logprob=processed,
        forced_logprob=forced,
        kept_count=(done.survivors > -torch.inf).sum(dim=-1),
        argmax_token_id=argmax,
        raw_noise_gain=raw_gain,
        processed_noise_gain=gain / row_values([s.params.temperature for s in segments], segments, logits.device),
        edge_logprobs=edge,
    )


def _noise_gain(logprobs: Tensor, chosen: Tensor) -> Tensor:
    """[R] sqrt((1 - p)^2 + sum of p_j^2 over the others): the gradient's length of the chosen logprob in the logits.

    1 - p is summed over the others, because the subtraction would lose it where p is near 1.
    """
    others = logprobs.exp().scatter_(1, chosen, 0.0)
    rest = others.sum(dim=-1)
    return (rest.square() + others.square_().sum(dim=-1)).sqrt()


def _edge(done: Processed, chosen: Tensor, kept_total: Tensor) -> Tensor:
    """[R, 2] float64 logprob of the chosen token with the least likely kept token gone, and the next one let in."""
    kept = done.survivors > -torch.inf
    logit = done.masked.gather(1, chosen).squeeze(1).double()
    inside = kept.gather(1, chosen).squeeze(1)
    last_in = done.survivors.masked_fill(~kept, torch.inf).amin(dim=-1).double()
    next_in = done.masked.masked_fill(kept, -torch.inf).amax(dim=-1).double()
    alone = kept.sum(dim=-1) == 1
    fewer_total = torch.where(alone, kept_total, kept_total + torch.log1p(-(last_in - kept_total).exp().clamp(max=1.0)))
    fewer = torch.where(inside & (alone | (logit > last_in)), logit - fewer_total, -torch.inf)
    more_total = torch.logaddexp(kept_total, next_in)
    more = torch.where(inside | ((logit == next_in) & (logit > -torch.inf)), logit - more_total, -torch.inf)
    return torch.stack([fewer, more], dim=1)
