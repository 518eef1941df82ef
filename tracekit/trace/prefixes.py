"""Beginnings of sequences of token ids by digests, so that what begins alike is found without comparing pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt


def prefix_digests(ids: npt.NDArray[Any], lengths: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Yield each length with the digest of as many ids; lengths beyond the ids are left out, and each id is read once.

    Args:
        ids: [T] of tokens, 32 bits each.
        lengths: ascending.
    """
    hashed, done = blake2b(digest_size=16), 0
    data = np.ascontiguousarray(ids, dtype="<u4")
    for length in lengths:
        if length > data.size:
            return
        hashed.update(data[done:length].data)
        done = length
        yield length, hashed.copy().digest()
