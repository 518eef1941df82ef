"""Requests of two traces side by side: paired by their ids, never by their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tracekit.diagnose.diff import Pair, Paired
from tracekit.errors import ReplayRefused
from tracekit.replay.output import Replay
from tracekit.replay.tokens import accepted, by_request, columns
from tracekit.scores import PROCESSED, RAW
from tracekit.scoring.forest import num_common
from tracekit.trace.redacted import key_of

if TYPE_CHECKING:
    from tracekit.trace.reader import Trace

I8 = npt.NDArray[np.int64]
F8 = npt.NDArray[np.float64]
Key = tuple[int, int]  # engine, request

REPORTED = "reported"
_COLUMNS = {REPORTED: "rollout_logprob", RAW: "raw_logprob", PROCESSED: "processed_logprob"}


@dataclass(frozen=True)
class _Request:
    """One request with its completion."""

    key: Key
    token_ids: I8  # [T]
    logprob: F8  # [T] nats, NaN where null
    engine_step: I8  # [T]


def pair_traces(first: Trace, second: Trace) -> Paired:
    """Pair the requests of two traces that have the same prompt ids.

    Of several with one prompt those go together whose completions agree longest. What is compared is what both report,
    where they report the same kind; else raw logprobs where both traces have them, else processed ones.

    Raises:
        ReplayRefused: they report different kinds and have none in common, no prompt is in both, or they are redacted
            by different keys.
    """
    if len({key_of(row) for trace in (first, second) for row in trace.engines()}) > 1:
        raise ReplayRefused("these recordings are not redacted by one key, so no prompt can be found in both")
    lens = _common_lens(first, second)
    one, other = _by_prompt(first, lens), _by_prompt(second, lens)
    pairs = [
        pair for prompt in sorted(one.keys() & other.keys()) for pair in _match(prompt, one[prompt], other[prompt])
    ]
    if not pairs:
        raise ReplayRefused("no prompt is in both traces, so there is nothing to compare")
    pairs.sort(key=lambda pair: pair.keys)
    count = [sum(map(len, side.values())) - len(pairs) for side in (one, other)]
    return Paired(lens, pairs, count[0], count[1])


def noise_lines(replay: Replay) -> dict[Key, F8]:
    """Return, by (engine, request), [T] nats above which a replay calls a token of the completion beyond noise."""
    tokens, threshold = replay.tokens, replay.result.verdict.noise.threshold
    names = ("engine", "request", "position")
    engine, request, position = (tokens.column(name).to_numpy().astype(np.int64) for name in names)
    line = tokens.column("sigma").to_numpy().astype(np.float64) * threshold
    parts = by_request({"engine": engine, "request": request, "position": position, "line": line})
    return {key: part["line"] for key, part in parts}


def _common_lens(first: Trace, second: Trace) -> str:
    modes = [{str(e.get("logprobs_mode") or "") for e in trace.engines()} for trace in (first, second)]
    if modes[0] == modes[1] and len(modes[0]) == 1:
        return REPORTED
    for lens in (RAW, PROCESSED):
        if all(trace.table("tokens").column(_COLUMNS[lens]).null_count == 0 for trace in (first, second)):
            return lens
    said = " and ".join("/".join(sorted(mode)) or "nothing" for mode in modes)
    raise ReplayRefused(
        f"the traces report different numbers, {said}, and do not both hold one kind: record with --logprobs both"
    )


def _by_prompt(trace: Trace, lens: str) -> dict[bytes, list[_Request]]:
    prompts = {
        (int(row["engine"]), int(row["request"])): np.asarray(row["prompt_token_ids"], dtype=">u4").tobytes()
        for row in trace.table("requests").select(["engine", "request", "prompt_token_ids"]).to_pylist()
    }
    tokens, _ = accepted(columns(trace.table("tokens")))
    found: dict[bytes, list[_Request]] = {}
    for key, part in by_request(tokens) if tokens["token_id"].size else ():
        prompt = prompts.get(key)
        if prompt and int(part["position"][0]) == len(prompt) // 4 and not np.any(np.diff(part["position"]) != 1):
            request = _Request(key, part["token_id"].astype(np.int64), part[_COLUMNS[lens]], part["engine_step"])
            found.setdefault(prompt, []).append(request)
    return found


def _match(prompt: bytes, one: list[_Request], other: list[_Request]) -> Iterator[Pair]:
    """The longest common beginnings first; equal ones in the order of their ids, then of their numbers."""
    by_ids = sorted([(r.token_ids.tolist(), r.key, side, r) for side in (0, 1) for r in (one, other)[side]])
    rows = [(side, request) for _, _, side, request in by_ids]
    common = [num_common(a.token_ids, b.token_ids) for (_, a), (_, b) in pairwise(rows)]
    # Sorted by ids, those with a common beginning are neighbours: stretches are joined, the longest beginning first.
    waiting = {i: deque([row]) for i, row in enumerate(rows)}  # by a stretch's first row: all of one side
    first, last = list(range(len(rows))), list(range(len(rows)))  # of a stretch, by its last and by its first row
    for i in sorted(range(len(common)), key=lambda i: -common[i]):
        left, right = waiting[first[i]], waiting.pop(i + 1)
        while left and right and left[0][0] != right[0][0]:
            (_, a), (_, b) = sorted((left.popleft(), right.popleft()), key=itemgetter(0))
            yield _pair(prompt, common[i], a, b)
        left.extend(right)
        first[last[i + 1]], last[first[i]] = first[i], last[i + 1]


def _pair(prompt: bytes, num: int, a: _Request, b: _Request) -> Pair:
    return Pair(
        keys=(a.key, b.key),
        num_prompt_tokens=len(prompt) // 4,
        token_ids=a.token_ids[:num],
        values=(a.logprob[:num], b.logprob[:num]),
        engine_step=a.engine_step[:num],
        lengths=(len(a.token_ids), len(b.token_ids)),
    )
