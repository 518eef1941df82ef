"""The largest values of long rows, and those between two bounds, without sorting the rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tracekit.scores import Values

_GROUP = 64


def largest(rows: Tensor, num: int) -> Tensor:
    """[r, min(num, V)] largest values of [r, V] rows, in descending order.

    Each row is taken in groups of 64: its largest values lie in the groups that have the largest maxima.
    """
    if num >= rows.shape[1]:
        return descending(rows)
    if _too_few_groups(rows, num):
        return rows.topk(num, dim=-1).values
    return descending(_candidates(rows, num)[1])[:, :num]


def largest_ids(rows: Tensor, num: int) -> Tensor:
    """[r, min(num, V)] indices of the values that `largest` gives, in no certain order."""
    if _too_few_groups(rows, num):
        return rows.topk(min(num, rows.shape[1]), dim=-1).indices
    which, candidates = _candidates(rows, num)
    position = candidates.topk(num, dim=-1).indices
    num_groups = rows.shape[1] // _GROUP
    in_group = position // num * num_groups + which.gather(1, position % num)
    beyond = position - _GROUP * num + _GROUP * num_groups
    return torch.where(position < _GROUP * num, in_group, beyond)


def _too_few_groups(rows: Tensor, num: int) -> bool:
    return num * 4 > rows.shape[1] // _GROUP


def _candidates(rows: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """[r, num] the groups that hold the largest values, and [r, 64 * num + V % 64] their values and the ungrouped.

    Group g has the columns g, g + G, g + 2 G and so on, G being the number of groups.
    """
    num_groups = rows.shape[1] // _GROUP
    groups = rows[:, : num_groups * _GROUP].view(-1, _GROUP, num_groups)
    which = groups.amax(dim=1).topk(num, dim=-1, sorted=False).indices
    inside = groups.gather(2, which.unsqueeze(1).expand(-1, _GROUP, -1)).flatten(1)
    return which, torch.cat([inside, rows[:, num_groups * _GROUP :]], dim=1)


def descending(rows: Tensor) -> Tensor:
    """The values of each row in descending order."""
    if rows.device.type == "cpu":  # numpy sorts float32 with vector instructions
        return torch.from_numpy(np.sort(rows.numpy(), axis=-1)).flip(-1)
    return rows.sort(dim=-1, descending=True).values


def between(rows: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The values of each row that are at least `low` and below `high`, and how many are not below `high`.

    Args:
        rows: [r, V] float32.
        low: [r] float32.
        high: [r] float32.

    Returns:
        [r, W] values in descending order, filled up with -inf, W at least 1, and [r] int64.
    """
    if rows.device.type == "cpu":
        found = [_between(row, lo, hi) for row, lo, hi in zip(rows.numpy(), low.numpy(), high.numpy(), strict=True)]
        inside = rows.new_full((len(rows), max(1, *(len(values) for values, _ in found))), -torch.inf)
        for line, (values, _) in zip(inside, found, strict=True):
            line[: len(values)] = torch.from_numpy(values)
        return descending(inside), torch.tensor([count for _, count in found])
    above = rows >= high.unsqueeze(1)
    outside = above | (rows < low.unsqueeze(1))
    width = max(rows.shape[1] - int(outside.sum(dim=-1).min()), 1)
    return rows.masked_fill(outside, -torch.inf).topk(width, dim=-1).values, above.sum(dim=-1)


def _between(row: Values, low: float, high: float) -> tuple[Values, int]:
    above = row >= high
    return np.compress((row >= low) & ~above, row), int(np.count_nonzero(above))
