"""The alternatives beside a token: as many as the client asked for, ranked, and the same numbers as the token's own."""

import numpy as np

from tracekit.audit.findings import Array, Finding, finding
from tracekit.audit.rows import EngineRows, sequence_key

__all__ = ["complete", "ranked"]


def complete(rows: EngineRows) -> list[Finding]:
    """Each sampled token has each rank from 1 to k once, where its request asked for k alternatives, else none."""
    topk, tokens = rows["topk"], rows["tokens"]
    asked = np.array([_asked(params) for params in rows.sampling], dtype=np.int64)
    at = rows.row_of(tokens["request"])
    k = np.where(at < 0, 0, asked[at] if asked.size else 0)
    of, place = sequence_key(topk["request"], topk["position"]), sequence_key(tokens["request"], tokens["position"])
    places, first, times = np.unique(place, return_index=True, return_counts=True)
    wanted = k[first]
    found = finding(
        "topk-without-token",
        rows.engine,
        ~np.isin(of, places),
        topk,
        lambda i: f"alternatives at position {topk['position'][i]}, where no token was sampled",
    )
    if not places.size:
        return found
    # how often each rank is there, for each place: as often as a token was sampled there
    mine = np.minimum(np.searchsorted(places, of), places.size - 1)
    known = places[mine] == of
    rank = topk["rank"]
    outside = known & ((rank < 1) | (rank > wanted[mine]))
    inside = known & ~outside
    slots = np.cumsum(np.r_[0, wanted])
    seen = np.bincount(slots[mine[inside]] + rank[inside] - 1, minlength=int(slots[-1]))
    wrong = np.zeros(places.size, dtype=bool)
    owner = np.repeat(np.arange(places.size), wanted)
    wrong[owner[seen != times[owner]]] = True
    columns = {name: values[first] for name, values in tokens.items()}
    return [
        *found,
        *finding(
            "topk-rank",
            rows.engine,
            outside,
            topk,
            lambda i: f"rank {rank[i]} at position {topk['position'][i]}, of {wanted[mine[i]]} asked for",
        ),
        *finding(
            "topk-missing",
            rows.engine,
            wrong,
            columns,
            lambda i: f"position {columns['position'][i]} does not have each of its {wanted[i]} alternatives once",
        ),
    ]


def ranked(rows: EngineRows) -> list[Finding]:
    """Logprobs do not rise with the rank, and the sampled token has its own one where it is among them."""
    topk, tokens = rows["topk"], rows["tokens"]
    of, place = sequence_key(topk["request"], topk["position"]), sequence_key(tokens["request"], tokens["position"])
    places, first, times = np.unique(place, return_index=True, return_counts=True)
    if not places.size or not of.size:
        return []
    # where several tokens were sampled at one position, a row does not tell whose alternative it is
    at = np.minimum(np.searchsorted(places, of), places.size - 1)
    clear = (places[at] == of) & (times[at] == 1)
    logprob = topk["logprob"]
    rises = np.r_[False, (of[1:] == of[:-1]) & (logprob[1:] > logprob[:-1])] & clear
    token = first[at]
    own = tokens["rollout_logprob"][token]
    is_sampled = clear & (topk["token_id"] == tokens["token_id"][token]) & ~np.isnan(own)
    return [
        *finding(
            "topk-order",
            rows.engine,
            rises,
            topk,
            lambda i: f"rank {topk['rank'][i]} at position {topk['position'][i]} is more likely than the one before",
        ),
        *finding(
            "topk-of-sampled",
            rows.engine,
            is_sampled & (_bits(logprob) != _bits(own)),
            topk,
            lambda i: f"position {topk['position'][i]} has logprob {own[i]}, among the alternatives {logprob[i]}",
        ),
    ]


def _asked(params: dict[str, object]) -> int:
    k = params.get("logprobs")
    # 0.32: the logprobs of tokens that the client names are no alternatives
    return max(k, 0) if isinstance(k, int) and not params.get("logprob_token_ids") else 0


def _bits(values: Array) -> Array:
    return np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
