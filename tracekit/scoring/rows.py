"""From a chunk of raw logits to the scores of its recorded tokens."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from tracekit.scores import Scores
from tracekit.scoring.processed import Drawn, drawn_from, noise_gain, processed
from tracekit.scoring.sampling import Segment, mask, reweigh, row_values
from tracekit.scoring.sweep import Sums, Sweep
from tracekit.scoring.truncation import Limits

Columns = dict[str, Tensor]


def score_rows(logits: Tensor, token_ids: Tensor, readings: Seq[Seq[Segment]]) -> list[Scores[Tensor]]:
    """Score one recorded token a row, once for each way in which the sampling parameters are read.

    Args:
        logits: [R, V] float32 raw logits, overwritten.
        token_ids: [R] int64, the recorded token of each row.
        readings: for each reading, what the R rows are, in order.

    Returns:
        For each reading, scores of R tokens, as tensors on the device of the logits.
    """
    limits = [_limits(segments, logits.device) for segments in readings]
    apart = [i for i, segments in enumerate(readings) if any(s.params.reorders for s in segments)]
    beside = [i for i in range(len(readings)) if i not in apart]
    raw: list[Columns] = []
    parts: list[list[Columns]] = [[] for _ in readings]
    sweep = Sweep(logits)
    for block in sweep.blocks():
        plain = sweep.plain(block)
        raw.append(_raw(sweep, plain, block, token_ids[block]))
        for i in beside:
            sums = _tempered(sweep, plain, limits[i][block])
            drawn = drawn_from(logits[block], token_ids[block], sums, limits[i][block].temperature)
            parts[i].append(processed(logits[block], sums, limits[i][block], drawn))
    for i in apart:
        own = logits if i == apart[-1] else logits.clone()
        parts[i] = _reweighed(own, token_ids, readings[i], limits[i])
    nothing = logits.new_empty(len(logits), 0)
    return [Scores(**_joined(raw), **_joined(its_parts), profile=nothing) for its_parts in parts]


def _reweighed(logits: Tensor, token_ids: Tensor, segments: Seq[Segment], limits: Limits) -> list[Columns]:
    """Score a reading that moves or bars single tokens; overwrites the logits."""
    reweigh(logits, segments)
    sweep = Sweep(logits)
    before: list[Drawn] = []
    if any(s.params.masks for s in segments):
        for block in sweep.blocks():
            sums = _tempered(sweep, sweep.plain(block), limits[block])
            before.append(drawn_from(logits[block], token_ids[block], sums, limits[block].temperature))
        mask(logits, segments)
    parts = []
    for i, block in enumerate(sweep.blocks()):
        sums = _tempered(sweep, sweep.plain(block), limits[block])
        drawn = drawn_from(logits[block], token_ids[block], sums, limits[block].temperature)
        if before:
            drawn = drawn.unmasked(before[i], limits[block].temperature)
        parts.append(processed(logits[block], sums, limits[block], drawn))
    return parts


def _limits(segments: Seq[Segment], device: torch.device) -> Limits:
    params = [s.params for s in segments]
    return Limits(
        temperature=row_values([p.temperature for p in params], segments, device),
        min_p=row_values([p.min_p for p in params], segments, device),
        top_k=row_values([p.top_k for p in params], segments, device).long(),
        top_p=row_values([p.top_p for p in params], segments, device),
    )


def _tempered(sweep: Sweep, plain: Sums, limits: Limits) -> Sums:
    return plain if bool((limits.temperature == 1).all()) else sweep.tempered(plain, limits.temperature)


def _raw(sweep: Sweep, plain: Sums, block: slice, token_ids: Tensor) -> Columns:
    drawn = drawn_from(sweep.logits[block], token_ids, plain, torch.ones_like(plain.best))
    inside = torch.ones_like(token_ids, dtype=torch.bool)
    return {
        "raw_logprob": (drawn.gap - plain.log_total).float(),
        "argmax_token_id": plain.best_token,
        "raw_noise_gain": noise_gain(plain.rest, plain.squares, drawn, inside, plain.log_total),
        "entropy": sweep.entropy(plain).float(),
    }


def _joined(parts: Seq[Columns]) -> Columns:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
