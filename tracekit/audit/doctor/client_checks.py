"""What must hold between a client's file and the trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tracekit.audit.doctor.pairs import Pair
from tracekit.audit.findings import BREAKS_REPLAY, MISLEADS, Check
from tracekit.plural import plural


def _prompt(pair: Pair) -> str | None:
    ours, theirs = pair.prompt, list(pair.seen["prompt_token_ids"])
    if ours == theirs:
        return None
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    lengths = "" if len(ours) == len(theirs) else f"; {plural(len(theirs), 'token')} against {len(ours)}"
    return f"prompt token {at} is {_at(theirs, at)} for the client, {_at(ours, at)} in the trace{lengths}"


def _at(ids: Sequence[int], at: int) -> str:
    return str(ids[at]) if at < len(ids) else "not there"


def _tokens(pair: Pair) -> str | None:
    ours, theirs = pair.tokens["token_id"], np.asarray(pair.seen["token_ids"], dtype=np.int64)
    count = min(ours.size, theirs.size)
    differs = np.flatnonzero(ours[:count] != theirs[:count])
    if differs.size:
        i = int(differs[0])
        return f"output token {i} is {theirs[i]} for the client, {ours[i]} in the trace"
    if theirs.size == ours.size or (theirs.size < ours.size and pair.client_left):
        return None
    text = f"the client received {plural(theirs.size, 'token')}, the trace has {ours.size}"
    if theirs.size > ours.size or not pair.frontend_ended:
        return text
    if pair.stops is None or theirs.size in pair.stops:
        return None
    return text + (
        f", and a stop string ends it at {min(pair.stops)}" if pair.stops else ", and no stop string in them"
    )


def _no_logprobs(pair: Pair) -> str | None:
    asked = pair.sampling.get("logprobs") is not None
    missing = "logprobs" in pair.seen and pair.seen["logprobs"] is None
    return "logprobs is None, and the request asked for them" if asked and missing else None


def _logprobs(pair: Pair) -> str | None:
    if pair.seen.get("logprobs") is None:
        return None
    theirs, count = np.asarray(pair.seen["logprobs"], dtype=np.float32), len(pair.seen["token_ids"])
    if theirs.size != count:
        return f"the client received {plural(theirs.size, 'logprob')} for {plural(count, 'token')}"
    ours = pair.tokens["rollout_logprob"][:count]
    differs = np.flatnonzero(ours.view(np.uint32) != theirs.view(np.uint32))
    return f"the logprob of output token {differs[0]} is not the client's, bit for bit" if differs.size else None


def _prompt_logprobs(pair: Pair) -> str | None:
    if pair.seen.get("prompt_logprobs") is None or not pair.rows["prompt_logprobs"]["request"].size:
        return None
    theirs = np.asarray(pair.seen["prompt_logprobs"][1:], dtype=np.float32)
    if any(theirs.tobytes() == ours.tobytes() for ours in pair.prompt_logprobs):
        return None
    ours = pair.prompt_logprobs[0]
    if theirs.size != ours.size:
        return f"the client received {plural(theirs.size, 'prompt logprob')}, the trace has {ours.size}"
    at = int(np.flatnonzero(ours.view(np.uint32) != theirs.view(np.uint32))[0])
    return f"the logprob of prompt token {at + 1} is not the client's, bit for bit"


def _finish(pair: Pair) -> str | None:
    if pair.told in (None, pair.reason) or pair.reason is None or pair.client_left:
        return None
    if pair.frontend_ended and (pair.stops is None or len(pair.seen["token_ids"]) in pair.stops):
        return None
    return f"finished with {pair.told} for the client, {pair.reason} in the trace"


def _unknown(pairs: Sequence[Pair]) -> str | None:
    return None if pairs else "it is not in the trace"


_NEEDS = frozenset({"requests", "tokens", "finishes"})
_LEAVE_OUT = "Train on what the client has, leave the requests it names out of any comparison, and report the trace."
_WHO_WROTE = "See who wrote the file, and have it written by one process, with every completion once."


def _of_file(id: str, severity: str, why: str, what_to_do: str = _WHO_WROTE) -> Check[Any]:
    """Return a check that `client_view` makes over all lines."""
    return Check(id, severity, why, what_to_do, _unknown, _NEEDS)


UNKNOWN = _of_file(
    "client-unknown",
    BREAKS_REPLAY,
    "What a client received is in the trace, else a part of the rollouts was not recorded.",
    "See whether these completions are of this trace, and whether recording was stopped meanwhile.",
)
INDEX = _of_file(
    "client-index",
    BREAKS_REPLAY,
    "A completion is the one of its request that it says it is, else rewards go to another one.",
    "See who numbers the completions of a request on the way.",
)
INCOMPLETE = _of_file(
    "client-incomplete",
    BREAKS_REPLAY,
    "A client that has one completion of a request has all that finished, else a group's baseline is of a part of it.",
    "See where completions are dropped, such as a filter or a timeout.",
)
DUPLICATE = _of_file(
    "client-duplicate", BREAKS_REPLAY, "A completion is in the file once, else the trainer learns from it twice."
)
ORDER = _of_file(
    "client-order",
    MISLEADS,
    "Lines stand in the order of their prompts, else who pairs them with prompts by their place pairs others.",
)
VALUE: Check[Callable[[Pair], str | None]] = Check(
    "client-value",
    BREAKS_REPLAY,
    "Every value of a completion is there and of its kind, else there is nothing to compare or to train on.",
    "See who writes null or another type, such as a table library that fills gaps.",
    _no_logprobs,
    _NEEDS,
)
OF_FILE = (UNKNOWN, INDEX, INCOMPLETE, DUPLICATE, ORDER)
# of each completion the first that holds is told: what follows from it is not another fault
CHECKS: tuple[Check[Callable[[Pair], str | None]], ...] = (
    Check(
        "client-prompt",
        BREAKS_REPLAY,
        "The engine computed the prompt that the client has, else the trainer scores another context.",
        "See who tokenizes: a chat template or special tokens that one side adds.",
        _prompt,
        _NEEDS,
    ),
    Check(
        "client-tokens",
        BREAKS_REPLAY,
        "The client has the tokens that the engine accepted, up to its stop string where one ended it, "
        "else the trainer learns from others than were sampled.",
        _LEAVE_OUT,
        _tokens,
        _NEEDS,
    ),
    VALUE,
    Check(
        "client-logprobs",
        BREAKS_REPLAY,
        "The client has the logprobs that the engine reported, bit for bit, else ratios start from other numbers.",
        "Look for a conversion on the way, such as float16 or rounded JSON.",
        _logprobs,
        _NEEDS,
    ),
    Check(
        "client-prompt-logprobs",
        BREAKS_REPLAY,
        "The client has the prompt logprobs that the engine reported, bit for bit.",
        "Look for a conversion on the way, such as float16 or rounded JSON, or for a list that is shifted by one.",
        _prompt_logprobs,
        _NEEDS | {"prompt_logprobs"},
    ),
    Check(
        "client-finish",
        BREAKS_REPLAY,
        "A completion finished for the reason that the engine gave, else a cut one is taken for whole.",
        _LEAVE_OUT,
        _finish,
        _NEEDS,
    ),
)
