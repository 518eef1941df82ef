"""The alternatives beside a token: as many as the client asked for, ranked, and the same numbers as the token's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from tracekit.audit.findings import BREAKS_REPLAY, Array, Broken, Check, select
from tracekit.audit.rows import EngineRows, once, place_key
from tracekit.join import lookup, pick


@dataclass(frozen=True)
class _Places:
    """The P places where tokens were sampled, and at which of them each of the N alternatives lies."""

    first: Array  # [P] row in tokens of the first one sampled there
    times: Array  # [P] how often one was
    wanted: Array  # [P] alternatives that its request asked for
    at: Array  # [N] -1 where no token was sampled

    def outside(self, rank: Array) -> Array:
        """Alternatives of a known place whose rank nobody asked for."""
        return (self.at >= 0) & ((rank < 1) | (rank > pick(self.wanted, self.at, 0)))


@once
def _places(rows: EngineRows) -> _Places:
    places, first, times = np.unique(place_key(rows["tokens"]), return_index=True, return_counts=True)
    asked = np.array([_asked(params) for params in rows.sampling], dtype=np.int64)
    wanted = pick(asked, rows.row_of(rows["tokens"]["request"]), 0)[first]
    return _Places(first, times, wanted, lookup(places, place_key(rows["topk"])))


def _without_token(rows: EngineRows) -> Iterator[Broken]:
    topk = rows["topk"]
    yield Broken(
        _places(rows).at < 0,
        topk,
        lambda i: f"alternatives at position {topk['position'][i]}, where no token was sampled",
    )


def _rank(rows: EngineRows) -> Iterator[Broken]:
    topk, places = rows["topk"], _places(rows)
    asked = pick(places.wanted, places.at, 0)
    yield Broken(
        places.outside(topk["rank"]),
        topk,
        lambda i: f"rank {topk['rank'][i]} at position {topk['position'][i]}, of {asked[i]} asked for",
    )


def _missing(rows: EngineRows) -> Iterator[Broken]:
    places, rank = _places(rows), rows["topk"]["rank"]
    # how often each rank is there, for each place: as often as a token was sampled there
    inside = (places.at >= 0) & ~places.outside(rank)
    slots = np.cumsum(np.r_[0, places.wanted])
    seen = np.bincount(slots[places.at[inside]] + rank[inside] - 1, minlength=int(slots[-1]))
    owner = np.repeat(np.arange(places.first.size), places.wanted)
    wrong = np.zeros(places.first.size, dtype=bool)
    wrong[owner[seen != places.times[owner]]] = True
    tokens = select(rows["tokens"], places.first)
    yield Broken(
        wrong,
        tokens,
        lambda i: f"position {tokens['position'][i]} does not have each of its {places.wanted[i]} alternatives once",
    )


def _clear(places: _Places) -> Array:
    """Alternatives that belong to one token: where several were sampled, a row does not tell whose it is."""
    return np.asarray((places.at >= 0) & (pick(places.times, places.at, 0) == 1))


def _order(rows: EngineRows) -> Iterator[Broken]:
    topk, clear = rows["topk"], _clear(_places(rows))
    of, logprob = place_key(topk), topk["logprob"]
    rises = np.r_[False, (of[1:] == of[:-1]) & (logprob[1:] > logprob[:-1])][: of.size]
    yield Broken(
        rises & clear,
        topk,
        lambda i: f"rank {topk['rank'][i]} at position {topk['position'][i]} is more likely than the one before",
    )


def _of_sampled(rows: EngineRows) -> Iterator[Broken]:
    topk, tokens, places = rows["topk"], rows["tokens"], _places(rows)
    token = pick(places.first, places.at, 0)
    clear, logprob = _clear(places), topk["logprob"]
    own = pick(tokens["rollout_logprob"], token, np.nan).astype(np.float32)
    mine = clear & (topk["token_id"] == pick(tokens["token_id"], token, 0)) & ~np.isnan(own)
    yield Broken(
        mine & (_bits(logprob) != _bits(own)),
        topk,
        lambda i: f"position {topk['position'][i]} has logprob {own[i]}, among the alternatives {logprob[i]}",
    )


def _asked(params: dict[str, object]) -> int:
    k = params.get("logprobs")
    # 0.32: the logprobs of tokens that the client names are not alternatives
    return max(k, 0) if isinstance(k, int) and not params.get("logprob_token_ids") else 0


def _bits(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)


_ALL = frozenset({"requests", "tokens", "topk"})
_REPORT = "Do not compare alternatives of this trace, and report it with the version of vLLM."

CHECKS = (
    Check(
        "topk-without-token",
        BREAKS_REPLAY,
        "Alternatives stand beside a token that was sampled, else they are of another context.",
        _REPORT,
        _without_token,
        _ALL,
    ),
    Check(
        "topk-rank",
        BREAKS_REPLAY,
        "Alternatives have the ranks that their request asked for, and no others.",
        _REPORT,
        _rank,
        _ALL,
    ),
    Check(
        "topk-missing",
        BREAKS_REPLAY,
        "A token has each alternative that its request asked for once.",
        _REPORT,
        _missing,
        _ALL,
    ),
    Check(
        "topk-order",
        BREAKS_REPLAY,
        "Logprobs of alternatives do not rise with the rank.",
        _REPORT,
        _order,
        frozenset({"tokens"}),
    ),
    Check(
        "topk-of-sampled",
        BREAKS_REPLAY,
        "The sampled token has one logprob, beside it and among the alternatives, else it is paired with another's.",
        "Do not compare the logprobs of this trace before you know which of the two is right, and report it.",
        _of_sampled,
        frozenset({"tokens"}),
    ),
)
