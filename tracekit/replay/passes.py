"""Run one pass over the rollouts of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from operator import itemgetter
from pathlib import Path

import numpy as np

from tracekit.replay.ladder import Pass
from tracekit.replay.rollouts import I8, Rollout
from tracekit.replay.scorers import Load
from tracekit.scores import Scores, Values, put, unscored
from tracekit.scoring.spans import whole


def score_pass(
    load: Load,
    folders: Mapping[int, Path],
    rollouts: Seq[Rollout],
    how: Pass,
    on_tokens: Callable[[int], None] | None = None,
) -> Scores[Values]:
    """Score the rollouts that a pass asks for, each token under the weights that sampled it.

    A rollout whose tokens span versions is scored whole under each of them, and each token's scores are taken from
    its own version: the KV of its earlier tokens is thereby recomputed under the weights of the token in question.

    Args:
        load: folder and dtype to scorer.
        folders: weight version to folder.
        rollouts: all of them; the result covers the tokens of all.
        how: the pass.
        on_tokens: told of tokens as they are done.

    Returns:
        Scores over all N tokens, NaN for those of rollouts that were not chosen.
    """
    chosen = pick_sample(rollouts, how.num_tokens)
    bounds = np.cumsum([0, *(r.num_tokens for r in rollouts)])
    out = unscored(int(bounds[-1]))
    for folder in dict.fromkeys(folders.values()):
        versions = [v for v, path in folders.items() if path == folder]
        wanted = {int(i): np.isin(rollouts[i].weight_version, versions) for i in chosen}
        todo = [i for i, mask in wanted.items() if mask.any()]
        if not todo:
            continue
        spans = [whole(sequence, [how.sampling(sequence.params)]) for sequence in (rollouts[i].sequence for i in todo)]
        scorer = load(folder, how.dtype)
        found = scorer.score(spans, max_batch_tokens=how.max_batch_tokens, on_tokens=on_tokens)
        for i, scores in zip(todo, found, strict=True):
            index = np.flatnonzero(wanted[i])
            put(out, bounds[i] + index, scores.readings[0].each(itemgetter(index)))
    return out


def num_tokens(rollouts: Seq[Rollout], folders: Mapping[int, Path], how: Pass) -> int:
    """Return how many tokens a pass scores: a rollout counts once for each folder that its tokens need."""
    return sum(
        rollouts[i].num_tokens * len({folders[int(v)] for v in np.unique(rollouts[i].weight_version)})
        for i in pick_sample(rollouts, how.num_tokens)
    )


def pick_sample(rollouts: Seq[Rollout], max_tokens: int | None) -> I8:
    """Return indices of rollouts, spread evenly, that hold `max_tokens` tokens at most (but one rollout)."""
    lengths = np.array([r.num_tokens for r in rollouts])
    if max_tokens is None or lengths.sum() <= max_tokens:
        return np.arange(lengths.size)
    count = max(int(max_tokens / lengths.mean()), 1)
    picked = np.unique(np.linspace(0, lengths.size - 1, count).round().astype(np.int64))
    fits = np.cumsum(lengths[picked]) <= max_tokens
    fits[0] = True
    return np.asarray(picked[fits], dtype=np.int64)
