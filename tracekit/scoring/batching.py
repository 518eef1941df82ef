"""Which sequences, or which pieces of a forest, go through the body together."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from tracekit.scoring.forest import Forest


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
    _check(max_batch_tokens)
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if room == 0:
            batches.append([])
            room = max(max_batch_tokens // max(lengths[index], 1), 1)
        batches[-1].append(index)
        room -= 1
    return batches


def plan_packs(forest: Forest, max_batch_tokens: int) -> list[list[int]]:
    """Fill packs with pieces; only a tree that is larger than a pack is spread over several.

    Args:
        forest: the pieces.
        max_batch_tokens: bound on the tokens of a pack; a longer piece goes alone.

    Returns:
        Indices of pieces, a parent never after its child, larger trees first.

    Raises:
        ValueError: max_batch_tokens is below 1.
    """
    _check(max_batch_tokens)
    packs: list[list[int]] = []
    rooms: list[int] = []
    lengths = [len(piece.ids) for piece in forest.pieces]
    for tree in sorted(forest.trees, key=lambda tree: (-sum(lengths[i] for i in tree), tree[0])):
        total = sum(lengths[i] for i in tree)
        place = next((p for p, room in enumerate(rooms) if room >= total), None)
        if place is not None:
            packs[place] += tree
            rooms[place] -= total
            continue
        for number, piece in enumerate(tree):
            if number == 0 or rooms[-1] < lengths[piece]:
                packs.append([])
                rooms.append(max_batch_tokens)
            packs[-1].append(piece)
            rooms[-1] -= lengths[piece]
    return packs


def _check(max_batch_tokens: int) -> None:
    if max_batch_tokens < 1:
        raise ValueError("max_batch_tokens must be at least 1")
