"""Which weights computed a block of the KV cache, and the rows of a prefix hit; the same for all generations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

Versions = tuple[int, int]  # oldest and newest weight version that computed a part of a block


class Hit(NamedTuple):
    """One block that a request found computed."""

    request_id: str
    kv_group: int
    block: int  # place in the request's block table
    block_id: int
    num_tokens: int
    versions: Versions | None


Written = tuple[int, int, int]  # versions, and tokens from the block's begin that are known to be computed


class Provenance:
    """Weight versions by physical block; a block that is not in it was computed by nobody who was seen.

    At most one entry per block of the engine.
    """

    def __init__(self) -> None:
        self._written: dict[int, Written] = {}

    def get(self, block_id: int, num_tokens: int = 0) -> Versions | None:
        """Versions of a block; None where they are not known, or not for as many tokens."""
        found = self._written.get(block_id)
        return found[:2] if found is not None and found[2] >= num_tokens else None

    def write(self, table: Sequence[int], block_size: int, start: int, end: int, version: int, sure: int = -1) -> None:
        """Note that a step computes the tokens from `start` to `end` of a request.

        Args:
            table: physical blocks of the request, in order.
            sure: blocks that begin here or later are computed from their begin; `start` where it is not told.

        Raises:
            IndexError: the table is too short for these tokens.
        """
        if len(table) * block_size < end:
            raise IndexError(f"{len(table)} blocks of {block_size} cannot hold {end} tokens")
        written = self._written
        first_whole, last = -(-max(start, sure) // block_size), (end - 1) // block_size
        for i in range(start // block_size, min(first_whole, last + 1)):
            before = written.get(table[i])
            # what is not known does not become known by a part of it
            if before is not None:
                oldest, newest, count = before
                count = max(count, min(end - i * block_size, block_size))
                written[table[i]] = (min(oldest, version), max(newest, version), count)
        if last >= first_whole:
            whole = (version, version, block_size)
            for block_id in table[first_whole:last]:
                written[block_id] = whole
            written[table[last]] = (version, version, end - last * block_size)

    def move(self, pairs: Iterable[tuple[int, int]], source: Provenance | None = None) -> None:
        """Note copies of (from, to), all from what was there before the first of them; from another memory's blocks."""
        written = (source or self)._written
        for to, found in [(to, written.get(block_id)) for block_id, to in pairs]:
            if found is None:
                self._written.pop(to, None)
            else:
                self._written[to] = found

    def forget(self, block_ids: Iterable[int]) -> None:
        """Let these blocks be computed by nobody knows whom."""
        for block_id in block_ids:
            self._written.pop(block_id, None)

    def clear(self) -> None:
        """Forget all blocks."""
        self._written.clear()


def parts(num_computed: int, block_size: int) -> list[int]:
    """Tokens in each block that a hit of `num_computed` tokens covers.

    Example:
        parts(40, 16) -> [16, 16, 8]
    """
    whole, rest = divmod(num_computed, block_size)
    return [block_size] * whole + [rest] * bool(rest)
