"""The whole distribution that a scorer judges tokens by, where it keeps no more than the edge of it."""

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from tracekit.scoring.processed import _kept
from tracekit.scoring.rows import _limits, _tempered
from tracekit.scoring.sampling import Segment, mask, reweigh
from tracekit.scoring.sweep import Sweep
from tracekit.scoring.truncation import Kept


def processed_logprobs(logits: Tensor, segments: Seq[Segment]) -> Tensor:
    """[R, V] float32 processed logprobs of [R, V] raw logits; -inf where a token is barred or dropped."""
    logits, limits = logits.clone(), _limits(segments, logits.device)
    reweigh(logits, segments)
    mask(logits, segments)
    sweep, results = Sweep(logits), []
    for block in sweep.blocks():
        rows = logits[block]
        _, kept = _kept(rows, _tempered(sweep, sweep.plain(block), limits[block]), limits[block])
        scaled = rows.double() / limits[block].temperature.double().unsqueeze(1)
        results.append(scaled.masked_fill(~is_kept(rows, kept, limits[block].temperature), -torch.inf).log_softmax(-1))
    return torch.cat(results).float()


def is_kept(rows: Tensor, kept: Kept, temperature: Tensor) -> Tensor:
    """[r, V] bool from the edges of the kept sets: of the tokens at the edge, the lowest ids are dropped."""
    gaps = (rows.double() - rows.double().amax(-1, keepdim=True)) / temperature.double().unsqueeze(1)
    tied = gaps == kept.last.unsqueeze(1)
    return ((gaps > kept.last.unsqueeze(1)) | (tied & (tied.cumsum(-1) > kept.num_tied.unsqueeze(1)))) & rows.isfinite()
