"""The tokens that a page holds: all, or of a long run its worst rollouts and a fair sample; packed as typed arrays."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Columns = Mapping[str, npt.NDArray[Any]]
I8 = npt.NDArray[np.int64]

MAX_TOKENS = 200_000  # of a page; more would not open in two seconds
_KINDS = {  # column of the page -> its little-endian type
    "token_id": "<u4",
    "recorded": "<f4",
    "replayed": "<f4",
    "sigma": "<f4",
    "weight_version": "<u4",
    "engine_step": "<u4",
    "batch": "<i4",
    "vocab_rank": "<u4",
    "num_cached": "<i4",
    "cached_version": "<i4",
    "flags": "<u1",
}
_SAME = ("token_id", "sigma", "weight_version", "engine_step", "vocab_rank", "num_cached", "cached_version")
BEYOND, FORCED, NOT_FINITE, SENTINEL = 1, 2, 4, 8  # flags


@dataclass(frozen=True)
class Chosen:
    """The rollouts of a page.

    Attributes:
        rollouts: [R] which of the run's, ascending.
        rows: [N] their rows in the token table.
        num_tokens: of the whole run.
        num_rollouts: of the whole run.
    """

    rollouts: I8
    rows: I8
    num_tokens: int
    num_rollouts: int

    @property
    def is_all(self) -> bool:
        """Whether nothing was left out."""
        return self.rollouts.size == self.num_rollouts


def choose(rollout: I8, beyond: npt.NDArray[np.bool_], d: npt.NDArray[np.float64], most: int = MAX_TOKENS) -> Chosen:
    """Choose whole rollouts of at most `most` tokens together: half of them the worst, half spread evenly.

    Args:
        rollout: [N] index of each token's rollout, non-decreasing.
        beyond: [N] whether the token is beyond noise.
        d: [N] nats; those that are not finite count as nothing.
        most: tokens; one rollout is there in any case.
    """
    lengths = np.bincount(rollout)
    count = lengths.size
    if rollout.size <= most:
        return Chosen(np.arange(count), np.arange(rollout.size), int(rollout.size), count)
    size = np.where(np.isfinite(d), np.abs(d), 0.0)
    worst = np.lexsort((-np.bincount(rollout, weights=size) / np.maximum(lengths, 1), -np.bincount(rollout, beyond)))
    taken = _fill(worst, lengths, most // 2, np.zeros(count, dtype=bool))
    left = most - int(lengths[taken].sum())
    others = np.flatnonzero(~taken)
    # every k-th of the others, so many as fit
    step = max(int(np.ceil(lengths[others].sum() / max(left, 1))), 1)
    taken = _fill(others[::step], lengths, left, taken)
    rollouts = np.flatnonzero(taken)
    return Chosen(rollouts, np.flatnonzero(taken[rollout]), int(rollout.size), count)


def _fill(order: I8, lengths: I8, room: int, taken: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    taken = taken.copy()
    for i in order:
        if lengths[i] <= room or not taken.any():
            taken[i] = True
            room -= int(lengths[i])
    return taken


def page_columns(tokens: Columns, replayed: str) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of a page, [N] each; `batch` is the requests of a token's engine step, -1 where not known.

    Args:
        tokens: columns of `replay.arrow`.
        replayed: the name of the one that was compared.
    """
    flags = tokens["beyond_noise"] * BEYOND | (tokens["kept_count"] == 1) * FORCED
    finite = np.isfinite(tokens["rollout_logprob"]) & np.isfinite(tokens[replayed])
    flags |= ~finite * NOT_FINITE | (finite & np.isnan(tokens["d"])) * SENTINEL
    same = {name: tokens[name] for name in _SAME}
    return {
        **same,
        "recorded": tokens["rollout_logprob"],
        "replayed": tokens[replayed],
        "batch": tokens["batch_size"],
        "flags": flags,
    }


def packed(columns: Columns, rows: I8) -> dict[str, str]:
    """Return each column of these rows as base64 of gzip of little-endian values; `_KINDS` says which."""
    return {
        name: base64.b64encode(gzip.compress(columns[name][rows].astype(kind).tobytes(), 6, mtime=0)).decode()
        for name, kind in _KINDS.items()
    }
