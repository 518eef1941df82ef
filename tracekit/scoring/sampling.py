"""vLLM V1's sampling parameters applied to fp32 logits: what turns raw logits into processed ones.

The order is vLLM's: allowed ids, bad words, min tokens, logit bias, penalties, temperature, min-p, top-k, top-p. A
mask commutes with every later step but the truncation, so masks come last here: between `reweigh` and `mask` each
token has the logit it would have had, which is what "the recorded token forced into the kept set" needs.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracekit.scoring.params import Params


@dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive rows of a chunk of logits: positions start..stop of one completion.

    The row of position t holds the logits from which token t was sampled, so its history is the prompt and
    `token_ids[:t]`.
    """

    params: Params
    prompt_token_ids: NDArray[np.uint32]
    """[P]"""
    token_ids: NDArray[np.uint32]
    """[T], the whole completion."""
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Rows of the part."""
        return self.stop - self.start


def row_values(values: Seq[float], segments: Seq[Segment], device: torch.device) -> Tensor:
    """[R] float32: one value a segment, repeated for each of its rows."""
    repeats = torch.tensor([s.num_rows for s in segments], device=device)
    return torch.tensor(values, dtype=torch.float32, device=device).repeat_interleave(repeats)


def _offsets(segments: Seq[Segment]) -> list[int]:
    """First row of each segment in the chunk."""
    return [0, *np.cumsum([s.num_rows for s in segments]).tolist()][:-1]


def reweigh(logits: Tensor, segments: Seq[Segment]) -> None:
    """Add the biases and apply the penalties of each row's request, in place."""
    for row, segment in zip(_offsets(segments), segments, strict=True):
        rows = logits[row : row + segment.num_rows]
        if segment.params.logit_bias:
            tokens, values = zip(*segment.params.logit_bias, strict=True)
            rows[:, _ids(tokens, logits)] += torch.tensor(values, device=logits.device)
        if segment.params.penalizes:
            _penalize(rows, segment)


def mask(logits: Tensor, segments: Seq[Segment]) -> None:
    """Put -inf where allowed ids, bad words and min tokens bar a token, in place."""
    for row, segment in zip(_offsets(segments), segments, strict=True):
        rows, params = logits[row : row + segment.num_rows], segment.params
        if params.allowed_token_ids:
            allowed = _ids(params.allowed_token_ids, logits)
            values = rows[:, allowed]
            rows.fill_(-torch.inf)
            rows[:, allowed] = values
        for word in params.bad_words:
            rows[_ids(_completes(word, segment), logits), word[-1]] = -torch.inf
        num_early = min(max(params.min_tokens - segment.start, 0), segment.num_rows)
        if num_early and params.stop_token_ids:
            rows[:num_early, _ids(params.stop_token_ids, logits)] = -torch.inf


def _completes(word: tuple[int, ...], segment: Segment) -> list[int]:
    """Rows of the segment at which the output ends in all of the word but its last token."""
    prefix = np.asarray(word[:-1], dtype=np.int64)
    first = max(segment.start, len(prefix))
    positions = np.arange(first, segment.stop)
    matches = np.ones(len(positions), dtype=bool)
    for k, token in enumerate(prefix):
        matches &= segment.token_ids[positions - len(prefix) + k] == token
    return [int(p) - segment.start for p in positions[matches]]


def _penalize(rows: Tensor, segment: Segment) -> None:
    """Apply one request's penalties to its rows: only tokens of its prompt and its output move."""
    params = segment.params
    prompt, output = segment.prompt_token_ids, segment.token_ids[: max(segment.stop - 1, 0)]
    tokens, columns = np.unique(np.concatenate([prompt, output]), return_inverse=True)
    moved = _ids(tokens, rows)
    logits = rows[:, moved]
    counts = _output_counts(logits, segment.start, _ids(columns[len(prompt) :], rows))
    if params.repetition_penalty != 1.0:
        seen = counts > 0
        seen[:, _ids(columns[: len(prompt)], rows)] = True
        penalty = torch.tensor(params.repetition_penalty, dtype=torch.float32, device=rows.device)
        # vLLM multiplies by the float32 reciprocal; dividing would differ in the last bit.
        factor = torch.where(logits > 0, 1.0 / penalty, penalty)
        logits.mul_(factor.masked_fill_(~seen, 1.0))
    logits.sub_(counts * torch.tensor(params.frequency_penalty, dtype=torch.float32, device=rows.device))
    logits.sub_((counts > 0) * torch.tensor(params.presence_penalty, dtype=torch.float32, device=rows.device))
    rows[:, moved] = logits


def _output_counts(like: Tensor, start: int, columns: Tensor) -> Tensor:
    """[r, U] float32: how often each of U tokens occurs in the output before each row's position.

    Args:
        like: [r, U]
        start: position of the first row.
        columns: which of the U tokens each position of the output has.
    """
    counts = torch.zeros_like(like)
    # A token at position t is in the history of every row after t: count it in the first of those, then add up.
    first_row = (torch.arange(len(columns), device=like.device) + 1 - start).clamp_(min=0)
    counts.index_put_((first_row, columns), torch.ones_like(columns, dtype=counts.dtype), accumulate=True)
    return counts.cumsum_(0)


def _ids(tokens: Seq[int] | NDArray[Any], like: Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(tokens, dtype=np.int64), device=like.device)
