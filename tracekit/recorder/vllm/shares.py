"""Which requests are recorded where a share of them is: their names say it, alike in every process of an engine."""

from __future__ import annotations

import hashlib
from functools import lru_cache


def is_within(family: str, share: float) -> bool:
    """Whether a request is of the share.

    Args:
        family: its id, or what the ids of one n>1 request have in common: those are recorded together or not at all.
        share: of the requests that are recorded, 0 to 1.
    """
    return share >= 1 or _place(family) < share


@lru_cache(maxsize=8192)
def _place(name: str) -> float:
    return int.from_bytes(hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=6).digest(), "big") / (
        1 << 48
    )
