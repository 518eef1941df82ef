"""Prompts as the KV has them: where a request found blocks of a prefix that no request of these tokens had computed.

Blocks are found by a hash of tokens; where an earlier request of the same tokens computed them, they are its own. Where
none did, they are those of another prompt, the earliest of its engine that is long enough, as far as the trace tells.
Under causal attention the KV of a borrowed prefix is that of its owner's tokens, so the request is scored behind those.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tracekit.replay.columns import list_column
from tracekit.replay.rollouts import Rollout
from tracekit.trace.prefixes import prefix_digests

if TYPE_CHECKING:
    from tracekit.diagnose.data import I8
    from tracekit.trace.reader import Trace

Ids = npt.NDArray[np.uint32]
_Key = tuple[int, int]  # engine, request
Prompts = tuple[tuple[int, tuple[int, ...]], ...]
"""Index of a rollout, and the prompt that its KV is of."""


def borrowed_prompts(trace: Trace, rollouts: Seq[Rollout], num_cached: I8) -> Prompts:
    """Return the rollouts whose KV begins with that of another prompt.

    Args:
        trace: for the prompts of requests that are not scored.
        rollouts: of the run.
        num_cached: [R] tokens that each found computed when it began.
    """
    cached = {(r.sequence.engine, r.sequence.request): int(n) for r, n in zip(rollouts, num_cached, strict=True)}
    scored = {(r.sequence.engine, r.sequence.request): (i, r.sequence) for i, r in enumerate(rollouts)}
    table = trace.table("requests").select(["engine", "request", "prompt_token_ids"])
    numbers = zip(table.column("engine").to_pylist(), table.column("request").to_pylist(), strict=True)
    own: dict[_Key, Ids] = dict(
        sorted(zip(numbers, list_column(table, "prompt_token_ids"), strict=True), key=itemgetter(0))
    )
    for key, (_, sequence) in scored.items():
        own[key] = np.concatenate([own[key], sequence.token_ids])
    found = []
    for engine, keys in groupby(own, key=itemgetter(0)):
        of_engine = {key: own[key] for key in keys}
        for key, ids in _held(of_engine, {key: n for key, n in cached.items() if key[0] == engine and n > 0}):
            index, sequence = scored[key]
            found.append((index, tuple(ids[: len(sequence.prompt_token_ids)].tolist())))
    return tuple(found)


def _held(own: Mapping[_Key, Ids], cached: Mapping[_Key, int]) -> Iterator[tuple[_Key, Ids]]:
    """Yield the requests of an engine whose KV is not of their own tokens, and the tokens that it is of.

    Args:
        own: prompt and output of each request, in their order.
        cached: tokens that requests found computed.
    """
    lengths = sorted(set(cached.values()))
    sought = {mark for key, num in cached.items() for mark in prefix_digests(own[key], [num])}
    same: dict[tuple[int, bytes], _Key] = {}  # the first request that begins so
    longest: list[_Key] = []  # the first request that is as long, for the lengths from the least on
    held: dict[_Key, Ids] = {}  # where it is not of its own tokens
    for key, ids in own.items():
        length = cached.get(key)
        if length is not None and (at := bisect_left(lengths, length)) < len(longest):
            mark = next(prefix_digests(ids, [length]), None)
            source = (same.get(mark) if mark else None) or longest[at]
            begun = np.concatenate([held.get(source, own[source])[:length], ids[length:]])
            if not np.array_equal(begun, ids):
                held[key] = begun
                yield key, begun
        for mark in prefix_digests(ids, lengths):
            if mark in sought:
                same.setdefault(mark, key)
        longest += [key] * (bisect_right(lengths, len(ids)) - len(longest))


def starts_of(rollouts: Seq[Rollout]) -> I8:
    """[R] index of the first token of each rollout among those of all."""
    return np.cumsum([0, *(r.num_tokens for r in rollouts)])[:-1].astype(np.int64)
