"""Which runs of tokens several spans have in common: a forest of pieces, each of which goes through the body once."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tracekit.scoring.kv import KV
from tracekit.scoring.spans import Span

_MIN_SAVED = 16  # positions; a cut that saves fewer costs more in calls than it saves in products


@dataclass(frozen=True, eq=False)
class Piece:
    """Input positions start..stop that some spans have in common, given all that lies before them.

    Attributes:
        ids: [stop - start] of the tokens.
        start: position of the first.
        parent: index of the piece that it goes on from; None at a root.
        past: what a root goes on from, of positions 0..start; None where start is 0.
        spans: indices of those that score a token from it.
    """

    ids: NDArray[np.int64]
    start: int
    parent: int | None
    past: KV | None
    spans: list[int] = field(default_factory=list)

    @property
    def stop(self) -> int:
        """One beyond the last position."""
        return self.start + len(self.ids)


@dataclass(frozen=True, eq=False)
class Forest:
    """Pieces, each after its parent, the whole of a tree together; and the piece that each span ends with."""

    pieces: list[Piece]
    leaves: list[int | None]
    """By span; None where a span runs nothing."""

    def chain(self, piece: int | None) -> list[int]:
        """Return the pieces from the root to this one."""
        found = []
        while piece is not None:
            found.append(piece)
            piece = self.pieces[piece].parent
        return found[::-1]

    @property
    def trees(self) -> list[list[int]]:
        """Indices of the pieces of each tree."""
        found: list[list[int]] = []
        for i, piece in enumerate(self.pieces):
            if piece.parent is None:
                found.append([])
            found[-1].append(i)
        return found


def grow(spans: Seq[Span], *, share: bool, min_saved: int = _MIN_SAVED) -> Forest:
    """Return the forest of spans; without sharing, each span is a tree of its own.

    Args:
        spans: of any sequences; those over the same past, or over none, may share.
        share: whether prefixes of equal ids run once.
        min_saved: positions that a cut has to save.
    """
    ids = [span.input_ids for span in spans]
    forest = Forest([], [None] * len(spans))
    roots: dict[int, list[int]] = {}
    for i, span in enumerate(spans):
        if len(ids[i]):
            roots.setdefault(id(span.past) if share else -1 - i, []).append(i)
    for members in roots.values():
        # big-endian bytes sort as the ids do, so that what begins alike lies side by side
        members.sort(key=lambda i: ids[i].astype(">i8").tobytes())
        _grow_tree(forest, spans, ids, members, min_saved)
    for i, span in enumerate(spans):
        first = span.stop - span.num_scored
        for piece in (forest.pieces[p] for p in forest.chain(forest.leaves[i])):
            if piece.stop > first:
                piece.spans.append(i)
    return forest


def _grow_tree(
    forest: Forest, spans: Seq[Span], ids: Seq[NDArray[np.int64]], members: list[int], min_saved: int
) -> None:
    origin, past = spans[members[0]].start, spans[members[0]].past
    todo: list[tuple[list[int], int, int, int | None]] = [(members, 0, 0, None)]
    while todo:
        # begin: where the next piece begins; seen: up to where these members are known to agree
        group, begin, seen, parent = todo.pop()
        end = seen + num_common(ids[group[0]][seen:], ids[group[-1]][seen:])
        if (len(group) - 1) * (end - begin) >= min_saved or len(ids[group[-1]]) == end > begin:
            piece = Piece(ids[group[0]][begin:end], origin + begin, parent, past if parent is None else None)
            forest.pieces.append(piece)
            parent, begin = len(forest.pieces) - 1, end
        ending = [i for i in group if len(ids[i]) == end]
        if begin == end:
            for i in ending:
                forest.leaves[i] = parent
        elif ending:
            todo.append((ending, begin, end, parent))
        branches: dict[int, list[int]] = {}
        for i in group:
            if len(ids[i]) > end:
                branches.setdefault(int(ids[i][end]), []).append(i)
        todo += [(branch, begin, end, parent) for branch in reversed(branches.values())]


def num_common(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    """Length of what two arrays have in common at their beginnings."""
    length = min(len(one), len(other))
    differs = np.flatnonzero(one[:length] != other[:length])
    return int(differs[0]) if len(differs) else length
