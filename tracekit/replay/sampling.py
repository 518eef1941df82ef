"""Which rollouts a pass on a sample scores: whole ones, spread evenly over the run."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq

import numpy as np

from tracekit.replay.rollouts import I8


def spread(count: int) -> I8:
    """Return 0..count in an order of which every beginning is spread evenly: bits reversed (van der Corput).

    A smaller sample is thereby a part of a larger one.

    Example:
        spread(4).tolist() == [0, 2, 1, 3]
    """
    bits = max(count - 1, 0).bit_length()
    reversed_bits = [int(f"{i:0{bits}b}"[::-1], 2) if bits else 0 for i in range(1 << bits)]
    return np.array([i for i in reversed_bits if i < count], dtype=np.int64)


def pick(
    candidates: Seq[int],
    tokens: I8,
    cost: I8,
    *,
    max_tokens: int | None,
    max_cost: float | None,
    at_least: int = 1,
    least_tokens: int = 0,
) -> list[int]:
    """Return those of the candidates that a pass scores, ascending.

    Args:
        candidates: indices of rollouts.
        tokens: of each rollout of the run.
        cost: of each rollout, in positions that run.
        max_tokens: bound on the tokens; None for none.
        max_cost: bound on the cost; None for none.
        at_least: how many are taken whatever the bounds.
        least_tokens: how many tokens are.
    """
    order = [candidates[i] for i in spread(len(candidates))]
    within = np.ones(len(order), dtype=bool)
    for values, bound in ((tokens, max_tokens), (cost, max_cost)):
        if bound is not None:
            within &= np.cumsum(values[order]) <= bound
    within[:at_least] = True
    within |= np.cumsum(tokens[order]) - tokens[order] < least_tokens
    return sorted(order[: _first_false(within)])


def _first_false(flags: Iterable[bool]) -> int:
    flags = list(flags)
    return flags.index(False) if False in flags else len(flags)
