"""Which weights computed a block of the KV cache, and the rows of a prefix hit; the same for all generations."""

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


class Provenance:
    """Weight versions by physical block; a block that is not in it was computed by nobody who was seen.

    At most one entry a block of the engine.
    """

    def __init__(self) -> None:
        self._versions: dict[int, Versions] = {}

    def get(self, block_id: int) -> Versions | None:
        """Versions of a block; None where they are not known."""
        return self._versions.get(block_id)

    def write(self, table: Sequence[int], block_size: int, start: int, end: int, version: int, sure: int = -1) -> None:
        """Note that a step computes the tokens from ``start`` to ``end`` of a request.

        Args:
            table: physical blocks of the request, in order.
            sure: blocks that begin here or later are computed from their begin; ``start`` where it is not told.

        Raises:
            IndexError: the table is too short for these tokens.
        """
        if len(table) * block_size < end:
            raise IndexError(f"{len(table)} blocks of {block_size} cannot hold {end} tokens")
        fresh = (version, version)
        first_whole = -(-max(start, sure) // block_size)
        for block_id in table[start // block_size : first_whole]:
            before = self._versions.get(block_id)
            # what is not known does not become known by a part of it
            if before is not None:
                self._versions[block_id] = (min(before[0], version), max(before[1], version))
        for block_id in table[first_whole : -(-end // block_size)]:
            self._versions[block_id] = fresh

    def copy(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Note copies of (source, destination), all from what was there before the first of them."""
        self.put([(destination, self._versions.get(source)) for source, destination in pairs])

    def put(self, found: Iterable[tuple[int, Versions | None]]) -> None:
        """Set blocks to versions, or to not known."""
        for block_id, versions in found:
            if versions is None:
                self._versions.pop(block_id, None)
            else:
                self._versions[block_id] = versions

    def forget(self, block_ids: Iterable[int]) -> None:
        """Let these blocks be computed by nobody knows whom."""
        for block_id in block_ids:
            self._versions.pop(block_id, None)

    def clear(self) -> None:
        """Forget all blocks."""
        self._versions.clear()


def parts(num_computed: int, block_size: int) -> list[int]:
    """Tokens in each block that a hit of ``num_computed`` tokens covers.

    Example:
        parts(40, 16) -> [16, 16, 8]
    """
    whole, rest = divmod(num_computed, block_size)
    return [block_size] * whole + [rest] * bool(rest)
