"""Prompts as the KV has them: where a request found blocks of a prefix that no request of these tokens had computed.

Blocks are found by a hash of tokens; where an earlier request of the same tokens computed them, they are its own. Where
none did, they are those of another prompt, the earliest of its engine that is long enough, as far as the trace tells.
Under causal attention the KV of a borrowed prefix is that of its owner's tokens, so the request is scored behind those.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import TYPE_CHECKING

import numpy as np

from tracekit.replay.rollouts import Rollout

if TYPE_CHECKING:
    from tracekit.diagnose.data import I8
    from tracekit.trace.reader import Trace

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
    own: dict[tuple[int, int], list[int]] = {}
    for row in table.to_pylist():
        key = row["engine"], row["request"]
        after = scored[key][1].token_ids.tolist() if key in scored else []
        own[key] = [*row["prompt_token_ids"], *after]
    held = dict(own)  # the tokens whose KV each request has
    found = []
    keys = sorted(own)
    for key in keys:
        length = cached.get(key, 0)
        before = [k for k in keys if k[0] == key[0] and k[1] < key[1] and len(own[k]) >= length]
        if length <= 0 or not before:
            continue
        same = next((k for k in before if own[k][:length] == own[key][:length]), None)
        held[key] = held[same if same is not None else before[0]][:length] + own[key][length:]
        if held[key] != own[key]:
            index, sequence = scored[key]
            found.append((index, tuple(held[key][: len(sequence.prompt_token_ids)])))
    return tuple(found)


def starts_of(rollouts: Seq[Rollout]) -> I8:
    """[R] index of the first token of each rollout among those of all."""
    return np.cumsum([0, *(r.num_tokens for r in rollouts)])[:-1].astype(np.int64)
