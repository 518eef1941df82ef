"""Which sequences go through the body together."""

from __future__ import annotations

from collections.abc import Sequence as Seq


def plan_batches(lengths: Seq[int], max_batch_tokens: int) -> list[list[int]]:
    """Group sequences of like length, so that little of a right-padded batch is padding.

    Args:
        lengths: tokens each sequence feeds to the body.
        max_batch_tokens: bound on rows times longest row; a longer sequence goes alone.

    Returns:
        Index lists, longest sequences first (a batch that does not fit in memory fails early).

    Raises:
        ValueError: max_batch_tokens is below 1.
    """
    if max_batch_tokens < 1:
        raise ValueError("max_batch_tokens must be at least 1")
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if room == 0:
            batches.append([])
            room = max(max_batch_tokens // max(lengths[index], 1), 1)
        batches[-1].append(index)
        room -= 1
    return batches
