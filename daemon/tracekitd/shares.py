"""Places that several share: where all are taken, who has the most of them makes room for who has few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tracekitd.catalog import Engine


def make_room(taken: Sequence[Engine], num_places: int, party: str) -> bool:
    """Return whether there is a place for one more of `party`; it may be that of one of those who have it.

    A party gives up places until it has as many as the one that asks, so that none can keep another out.

    Args:
        taken: who is connected.
        num_places: for all together.
        party: see `peers.party_of`.
    """
    if len(taken) < num_places:
        return True
    held = Counter(engine.party for engine in taken)
    largest, count = held.most_common(1)[0]
    if count < held[party] + 2:
        return False
    # who has sent nothing has least to lose, then who came last
    chosen = max((e for e in taken if e.party == largest), key=lambda e: (not e.received_seq, e.number))
    chosen.oust()
    return True


def largest(parties: Sequence[str]) -> int:
    """Return the place of the first of those that are there most often."""
    return parties.index(Counter(parties).most_common(1)[0][0])
