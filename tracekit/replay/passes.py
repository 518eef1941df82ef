"""The scoring passes of one run: the trainer's, two that measure its noise, and those that test other semantics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tracekit.diagnose.data import I8, Mask, Scores
from tracekit.errors import ReplayRefused
from tracekit.replay.rollouts import Recorded
from tracekit.scoring.params import parse_params
from tracekit.scoring.types import Sequence, TokenScores

__all__ = ["Pass", "ScorerLike", "identity_test", "pick_sample", "run_pass", "variants"]

_FIELDS = tuple(Scores.__dataclass_fields__)
_NUM_IDENTITY = 4
_PARAMETERS = {
    "temperature": ("temperature",),
    "truncation": ("top_p", "top_k", "min_p"),
    "penalties": ("repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias"),
}


class ScorerLike(Protocol):
    """What the runner needs of a scorer."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> str: ...

    @property
    def device(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    def score(
        self, sequences: list[Sequence], *, max_batch_tokens: int, on_tokens: Callable[[int], None] | None = None
    ) -> list[TokenScores]: ...


@dataclass(frozen=True)
class Pass:
    """One way to score: in which precision, in which batch shape, with which reading of the sampling parameters."""

    dtype: str
    max_batch_tokens: int
    sampling: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict


def run_pass(
    load: Callable[[Path, str], ScorerLike],
    folders: Mapping[int, Path],
    requests: Seq[Recorded],
    chosen: I8,
    how: Pass,
    on_tokens: Callable[[int], None] | None = None,
) -> Scores:
    """Score some requests, each token under the weights that sampled it.

    A request whose tokens span versions is scored whole under each of them, and each token's scores are taken from
    its own version: the KV of its earlier tokens is thereby recomputed under the weights of the token in question.

    Args:
        load: folder and dtype to scorer.
        folders: weight version to folder.
        requests: all requests; the result covers the tokens of all of them.
        chosen: indices of the requests to score.
        how: the pass.
        on_tokens: told of tokens as they are done.

    Returns:
        Scores over all N tokens, NaN for those of requests that were not chosen.
    """
    bounds = np.cumsum([0, *(len(r.sequence.token_ids) for r in requests)])
    out = empty_scores(int(bounds[-1]))
    for folder in dict.fromkeys(folders.values()):
        versions = [v for v, path in folders.items() if path == folder]
        wanted = {int(i): np.isin(requests[i].weight_version, versions) for i in chosen}
        todo = [i for i, mask in wanted.items() if mask.any()]
        if not todo:
            continue
        sequences = [replace(requests[i].sequence, sampling=how.sampling(requests[i].sequence.sampling)) for i in todo]
        scorer = load(folder, how.dtype)
        scores = scorer.score(sequences, max_batch_tokens=how.max_batch_tokens, on_tokens=on_tokens)
        for i, score in zip(todo, scores, strict=True):
            _put(out, int(bounds[i]), wanted[i], score)
    return out


def _put(out: Scores, start: int, mask: Mask, score: TokenScores) -> None:
    index = start + np.flatnonzero(mask)
    for name in _FIELDS:
        getattr(out, name)[index] = getattr(score, name)[mask]


def empty_scores(num_tokens: int) -> Scores:
    """Return scores of no token: NaN, and 0 survivors."""
    values: dict[str, Any] = {name: np.full(num_tokens, np.nan) for name in _FIELDS}
    values["kept_count"] = np.zeros(num_tokens, dtype=np.int64)
    values["edge_logprobs"] = np.full((num_tokens, 2), np.nan)
    return Scores(**values)


def identity_test(scorer: ScorerLike, requests: Seq[Recorded], max_batch_tokens: int) -> None:
    """Score a few requests twice in the same shape.

    Raises:
        ReplayRefused: the two are not bit-equal, so that nothing the scorer says could be told from its own whims.
    """
    few = [r.sequence for r in requests[:_NUM_IDENTITY]]
    first, second = (scorer.score(few, max_batch_tokens=max_batch_tokens) for _ in range(2))
    for sequence, a, b in zip(few, first, second, strict=True):
        for name in ("raw_logprob", "forced_logprob"):
            if getattr(a, name).tobytes() != getattr(b, name).tobytes():
                raise ReplayRefused(
                    f"the scorer does not agree with itself on request {sequence.request} ({name} differs between two "
                    "identical passes), so it gives no verdict"
                )


def pick_sample(requests: Seq[Recorded], max_tokens: int) -> I8:
    """Return indices of requests, spread evenly, that hold ``max_tokens`` tokens at most (but one request)."""
    lengths = np.array([len(r.sequence.token_ids) for r in requests])
    if lengths.sum() <= max_tokens:
        return np.arange(lengths.size)
    count = max(int(max_tokens / lengths.mean()), 1)
    picked = np.unique(np.linspace(0, lengths.size - 1, count).round().astype(np.int64))
    fits = np.cumsum(lengths[picked]) <= max_tokens
    fits[0] = True
    return np.asarray(picked[fits], dtype=np.int64)


def variants(requests: Seq[Recorded]) -> dict[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]:
    """Return the readings of the sampling parameters, by name, that differ from both raw and processed in this run."""
    active: set[str] = set()
    for recorded in requests:
        params = parse_params(recorded.sequence.sampling)
        active |= {"temperature"} if params.temperature != 1.0 else set()
        active |= {"truncation"} if params.truncates else set()
        active |= {"penalties"} if params.penalizes or params.logit_bias else set()
    if len(active) < 2:
        return {}  # without the only thing there is they are raw
    return {f"processed without {name}": _without(name) for name in _PARAMETERS if name in active}


def _without(name: str) -> Callable[[Mapping[str, Any]], Mapping[str, Any]]:
    def strip(sampling: Mapping[str, Any]) -> Mapping[str, Any]:
        if parse_params(sampling).temperature == 1.0 and name == "temperature":
            return sampling  # a greedy request must stay greedy
        return {key: value for key, value in sampling.items() if key not in _PARAMETERS[name]}

    return strip
