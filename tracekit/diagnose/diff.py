"""Two recordings of the same prompts against each other: what moved between two engines, versions or settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from tracekit.diagnose.chance import binomial_tail
from tracekit.diagnose.data import F8, I8, Mask
from tracekit.diagnose.metrics import Metrics, bit_equal, measure
from tracekit.diagnose.noise import FALSE_ROLLOUTS

Key = tuple[int, int]  # engine, request
Outcome = Literal["equal", "within noise", "beyond noise", "differs", "nothing compared"]
CHANCE = 0.01  # share of equal pairs of recordings that may be called beyond noise


@dataclass(frozen=True)
class Pair:
    """The same request in two recordings, up to the first token that differs: the C tokens that can be compared."""

    keys: tuple[Key, Key]
    num_prompt_tokens: int
    token_ids: I8  # [C]
    values: tuple[F8, F8]  # [C] nats each, NaN where none was recorded
    engine_step: I8  # [C], of the first
    lengths: tuple[int, int]  # of both completions


@dataclass(frozen=True)
class Paired:
    """All pairs of two recordings; `lens` says which logprobs are compared: "reported", "raw" or "processed"."""

    lens: str
    pairs: list[Pair]
    num_only_first: int  # requests without a partner
    num_only_second: int


@dataclass(frozen=True)
class Differing:
    """One token whose values differ.

    Attributes:
        engine: in the first recording.
        request: in the first recording.
        other_request: in the second.
        output_index: of the token, from 0.
        position: of the token, 0-based over prompt and completion.
        token_id: its id, the same in both.
        engine_step: of the first recording.
        first: its value there, nats.
        second: its value in the second recording, nats.
        d: second − first, nats.
    """

    engine: int
    request: int
    other_request: int
    output_index: int
    position: int
    token_id: int
    engine_step: int
    first: float
    second: float
    d: float


@dataclass(frozen=True)
class Difference:
    """What moved between two recordings.

    Attributes:
        outcome: equal (every compared value to the bit), within noise, beyond noise, differs (and nobody measured
            noise), or nothing compared (no two completions begin with the same token, or no value was recorded).
        lens: which logprobs were compared.
        num_pairs: requests with the same prompt in both.
        num_only_first: requests of the first without a partner.
        num_only_second: requests of the second without one.
        num_same_ids: pairs whose completions are the same ids throughout.
        num_tokens: compared: those up to the first id that differs, with a value in both.
        num_tokens_after: of the first recording behind an id that differs: no more the same context.
        metrics: of second against first, as a trainer's against an engine's.
        num_pairs_not_equal: pairs with a value that differs.
        first_not_equal: the value that differs first, by engine step of the first recording.
        num_pairs_beyond: pairs with a token beyond both recordings' noise, null where that was not measured.
        first_beyond: the first such token.
        chance: probability that equal engines show as many pairs beyond noise, null where that was not measured.
    """

    outcome: Outcome
    lens: str
    num_pairs: int
    num_only_first: int
    num_only_second: int
    num_same_ids: int
    num_tokens: int
    num_tokens_after: int
    metrics: Metrics
    num_pairs_not_equal: int
    first_not_equal: Differing | None
    num_pairs_beyond: int | None
    first_beyond: Differing | None
    chance: float | None


def compare(paired: Paired, lines: tuple[dict[Key, F8], dict[Key, F8]] | None = None) -> Difference:
    """Compare two recordings token by token, as far as their ids agree.

    Args:
        paired: their requests.
        lines: of both, by (engine, request): [T] nats above which a token of the completion is beyond noise; None where
            nobody measured it.
    """
    pairs = paired.pairs
    first, second = (np.concatenate([p.values[side] for p in pairs]) for side in (0, 1))
    use = np.isfinite(first) & np.isfinite(second)
    of_pair = np.repeat(np.arange(len(pairs)), [p.token_ids.size for p in pairs])
    index = np.concatenate([np.arange(p.token_ids.size) for p in pairs])
    step = np.concatenate([p.engine_step for p in pairs])
    unequal = use & ~bit_equal(first, second)

    def earliest(which: Mask) -> Differing | None:
        hits = np.flatnonzero(which)
        if not hits.size:
            return None
        at = hits[np.lexsort((index[hits], of_pair[hits], step[hits]))[0]]
        return _differing(pairs[of_pair[at]], int(index[at]))

    beyond = None if lines is None else unequal & (np.abs(second - first) > _line(pairs, lines))
    hit = None if beyond is None else len(np.unique(of_pair[beyond]))
    chance = None if hit is None else binomial_tail(hit, len(pairs), 2 * FALSE_ROLLOUTS)
    return Difference(
        outcome=_outcome(bool(use.any()), bool(unequal.any()), chance),
        lens=paired.lens,
        num_pairs=len(pairs),
        num_only_first=paired.num_only_first,
        num_only_second=paired.num_only_second,
        num_same_ids=sum(p.lengths == (p.token_ids.size,) * 2 for p in pairs),
        num_tokens=int(np.count_nonzero(use)),
        num_tokens_after=sum(p.lengths[0] - p.token_ids.size for p in pairs),
        metrics=measure(np.where(use, first, np.nan), second),
        num_pairs_not_equal=len(np.unique(of_pair[unequal])),
        first_not_equal=earliest(unequal),
        num_pairs_beyond=hit,
        first_beyond=None if beyond is None else earliest(beyond),
        chance=chance,
    )


def _outcome(some: bool, unequal: bool, chance: float | None) -> Outcome:
    if not some:
        return "nothing compared"
    if not unequal:
        return "equal"
    if chance is None:
        return "differs"
    return "beyond noise" if chance < CHANCE else "within noise"


def _line(pairs: list[Pair], lines: tuple[dict[Key, F8], dict[Key, F8]]) -> F8:
    """[C of all] the wider of both recordings' lines; where a replay left a request out, nothing is beyond noise."""
    parts = []
    for pair in pairs:
        num = pair.token_ids.size
        both = [side.get(key) for side, key in zip(lines, pair.keys, strict=True)]
        parts.append(np.max([np.full(num, np.inf) if line is None else line[:num] for line in both], axis=0))
    return np.concatenate(parts)


def _differing(pair: Pair, i: int) -> Differing:
    first, second = (float(side[i]) for side in pair.values)
    return Differing(
        engine=pair.keys[0][0],
        request=pair.keys[0][1],
        other_request=pair.keys[1][1],
        output_index=i,
        position=pair.num_prompt_tokens + i,
        token_id=int(pair.token_ids[i]),
        engine_step=int(pair.engine_step[i]),
        first=first,
        second=second,
        d=second - first,
    )
