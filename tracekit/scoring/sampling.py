"""vLLM V1's sampling parameters applied to fp32 logits: what turns raw logprobs into processed ones.

The order is vLLM's: allowed ids, bad words, min tokens, logit bias, penalties, temperature, min-p, top-k, top-p. A
mask commutes with every later step but the truncation, so masks are kept apart (`banned`): that leaves each token
the logit it would have had, which is what "the recorded token forced into the kept set" needs.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracekit.scoring.params import Params
from tracekit.scoring.truncation import truncate


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


@dataclass(frozen=True, eq=False)
class Processed:
    """A chunk of logits after the sampling parameters."""

    logits: Tensor
    """[R, V] fp32 after bias, penalties and temperature; masks and truncation not applied."""
    masked: Tensor
    """[R, V] the same with -inf where a mask bars the token."""
    survivors: Tensor
    """[R, V] the same with -inf also where min-p, top-k or top-p drops it: processed logprobs are its log-softmax."""


def process(logits: Tensor, segments: Seq[Segment]) -> Processed:
    """Apply the parameters of each row's request.

    Args:
        logits: [R, V] float32, overwritten.
        segments: what the R rows are, in order.
    """
    banned = _banned(logits, segments)
    _add_bias(logits, segments)
    _penalize(logits, segments)
    if any(s.params.temperature != 1.0 for s in segments):
        logits.div_(row_values([s.params.temperature for s in segments], segments, logits.device).unsqueeze(1))
    masked = logits if banned is None else logits.masked_fill(banned, -torch.inf)
    if not any(s.params.truncates for s in segments):
        return Processed(logits, masked, masked)
    survivors = truncate(
        masked,
        min_p=row_values([s.params.min_p for s in segments], segments, logits.device),
        top_k=row_values([s.params.top_k for s in segments], segments, logits.device).long(),
        top_p=row_values([s.params.top_p for s in segments], segments, logits.device),
    )
    return Processed(logits, masked, survivors)


def row_values(values: Seq[float], segments: Seq[Segment], device: torch.device) -> Tensor:
    """[R] float32: one value a segment, repeated for each of its rows."""
    repeats = torch.tensor([s.num_rows for s in segments], device=device)
    return torch.tensor(values, dtype=torch.float32, device=device).repeat_interleave(repeats)


def _offsets(segments: Seq[Segment]) -> list[int]:
    """First row of each segment in the chunk."""
    return [0, *np.cumsum([s.num_rows for s in segments]).tolist()][:-1]


def _banned(logits: Tensor, segments: Seq[Segment]) -> Tensor | None:
    """[R, V] bool of the tokens that allowed ids, bad words and min tokens bar; None where nothing does."""
    if not any(s.params.allowed_token_ids or s.params.bad_words or s.params.stop_token_ids for s in segments):
        return None
    banned = torch.zeros_like(logits, dtype=torch.bool)
    for row, segment in zip(_offsets(segments), segments, strict=True):
        rows, params = banned[row : row + segment.num_rows], segment.params
        if params.allowed_token_ids:
            rows[:] = True
            rows[:, _ids(params.allowed_token_ids, logits)] = False
        for word in params.bad_words:
            rows[_ids(_completes(word, segment), logits), word[-1]] = True
        num_early = min(max(params.min_tokens - segment.start, 0), segment.num_rows)
        if num_early and params.stop_token_ids:
            rows[:num_early, _ids(params.stop_token_ids, logits)] = True
    return banned


def _completes(word: tuple[int, ...], segment: Segment) -> list[int]:
    """Rows of the segment at which the output ends in all of the word but its last token."""
    prefix = np.asarray(word[:-1], dtype=np.int64)
    first = max(segment.start, len(prefix))
    positions = np.arange(first, segment.stop)
    matches = np.ones(len(positions), dtype=bool)
    for k, token in enumerate(prefix):
        matches &= segment.token_ids[positions - len(prefix) + k] == token
    return [int(p) - segment.start for p in positions[matches]]


def _add_bias(logits: Tensor, segments: Seq[Segment]) -> None:
    for row, segment in zip(_offsets(segments), segments, strict=True):
        if segment.params.logit_bias:
            tokens, values = zip(*segment.params.logit_bias, strict=True)
            logits[row : row + segment.num_rows, _ids(tokens, logits)] += torch.tensor(values, device=logits.device)


def _penalize(logits: Tensor, segments: Seq[Segment]) -> None:
    for row, segment in zip(_offsets(segments), segments, strict=True):
        params = segment.params
        if not params.penalizes:
            continue
        rows = logits[row : row + segment.num_rows]
        counts = _output_counts(rows, segment)
        if params.repetition_penalty != 1.0:
            seen = counts > 0
            seen[:, _ids(segment.prompt_token_ids, logits)] = True
            penalty = torch.tensor(params.repetition_penalty, dtype=torch.float32, device=logits.device)
            # vLLM multiplies by the float32 reciprocal; dividing would differ in the last bit.
            factor = torch.where(rows > 0, 1.0 / penalty, penalty)
            rows.mul_(factor.masked_fill_(~seen, 1.0))
        rows.sub_(counts * torch.tensor(params.frequency_penalty, dtype=torch.float32, device=logits.device))
        rows.sub_((counts > 0) * torch.tensor(params.presence_penalty, dtype=torch.float32, device=logits.device))


def _output_counts(rows: Tensor, segment: Segment) -> Tensor:
    """[r, V] float32: how often each token occurs in the output before each row's position."""
    counts = torch.zeros_like(rows)
    tokens = _ids(segment.token_ids[: segment.stop - 1] if segment.stop else (), rows)
    # A token at position t is in the history of every row after t: count it in the first of those, then add up.
    first_row = (torch.arange(len(tokens), device=rows.device) + 1 - segment.start).clamp_(min=0)
    counts.index_put_((first_row, tokens), torch.ones_like(tokens, dtype=counts.dtype), accumulate=True)
    return counts.cumsum_(0)


def _ids(tokens: Seq[int] | NDArray[np.uint32], like: Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(tokens, dtype=np.int64), device=like.device)
