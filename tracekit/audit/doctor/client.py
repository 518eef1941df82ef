"""The client's own view of its completions against the engine's, bit for bit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tracekit.audit.findings import BREAKS_REPLAY, MAX_EXAMPLES, Check, Columns, Finding, Violation, select
from tracekit.audit.rows import EngineRows
from tracekit.report.plural import plural

Completion = Mapping[str, Any]  # a row of jobs.rollout.read_view


@dataclass(frozen=True)
class Pair:
    """A completion as its client has it, and the request of the trace that it may be."""

    seen: Completion
    rows: EngineRows
    row: int  # in requests

    @property
    def number(self) -> int:
        """The request's number."""
        return int(self.rows["requests"]["request"][self.row])

    @property
    def tokens(self) -> Columns:
        """The request's accepted tokens."""
        begin, end = np.searchsorted(self.rows.accepted["request"], [self.number, self.number + 1])
        return select(self.rows.accepted, slice(begin, end))

    @property
    def reason(self) -> str | None:
        """Why it finished; None where it did not."""
        at = np.flatnonzero(self.rows["finishes"]["request"] == self.number)
        return self.rows.reasons[int(at[0])] if at.size else None

    @property
    def client_ended(self) -> bool:
        """Whether the client may have ended it, and have fewer tokens than the engine: a stop string, an abort."""
        return bool(self.rows.sampling[self.row].get("stop")) or self.reason in (None, "abort")


def _prompt(pair: Pair) -> str | None:
    ids = pair.rows.requests.column("prompt_token_ids")[pair.row].as_py()
    return None if ids == list(pair.seen["prompt_token_ids"]) else "the client sent another prompt"


def _tokens(pair: Pair) -> str | None:
    ours, theirs = pair.tokens["token_id"], np.asarray(pair.seen["token_ids"], dtype=np.int64)
    count = min(ours.size, theirs.size)
    differs = np.flatnonzero(ours[:count] != theirs[:count])
    if differs.size:
        i = int(differs[0])
        return f"output token {i} is {theirs[i]} for the client, {ours[i]} in the trace"
    if theirs.size > ours.size or (theirs.size < ours.size and not pair.client_ended):
        return f"the client received {plural(theirs.size, 'token')}, the trace has {ours.size}"
    return None


def _logprobs(pair: Pair) -> str | None:
    if pair.seen.get("logprobs") is None:
        return None
    theirs, count = np.asarray(pair.seen["logprobs"], dtype=np.float32), len(pair.seen["token_ids"])
    if theirs.size != count:
        return f"the client received {plural(theirs.size, 'logprob')} for {plural(count, 'token')}"
    ours = pair.tokens["rollout_logprob"][:count]
    differs = np.flatnonzero(ours.view(np.uint32) != theirs.view(np.uint32))
    return f"the logprob of output token {differs[0]} is not the client's, bit for bit" if differs.size else None


def _finish(pair: Pair) -> str | None:
    told = pair.seen.get("finish_reason")
    if pair.client_ended or told in (None, pair.reason):
        return None
    return f"finished with {told} for the client, {pair.reason} in the trace"


def _unknown(pairs: Sequence[Pair]) -> str | None:
    return None if pairs else "it is not in the trace"


_NEEDS = frozenset({"requests", "tokens", "finishes"})
_LEAVE_OUT = "Train on what the client has, leave the requests it names out of any comparison, and report the trace."

UNKNOWN = Check(
    "client-unknown",
    BREAKS_REPLAY,
    "What a client received is in the trace, else a part of the rollouts was not recorded.",
    "See whether these completions are of this trace, and whether recording was stopped meanwhile.",
    _unknown,
    _NEEDS,
)
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
        "The client has the tokens that the engine accepted, else the trainer learns from others than were sampled.",
        _LEAVE_OUT,
        _tokens,
        _NEEDS,
    ),
    Check(
        "client-logprobs",
        BREAKS_REPLAY,
        "The client has the logprobs that the engine reported, bit for bit, else ratios start from other numbers.",
        "Look for a conversion on the way, such as float16 or rounded JSON.",
        _logprobs,
        _NEEDS,
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


def client_view(engines: Sequence[EngineRows], view: Sequence[Completion]) -> list[Finding]:
    """Find each completion in the trace, and compare prompt, token ids, float32 logprobs and finish reason.

    Args:
        engines: all engines of the trace: a completion does not say which of them made it.
        view: what the clients received.
    """
    known: dict[tuple[str, int], list[Pair]] = defaultdict(list)
    for rows in engines:
        names = rows.requests.column("external_id").to_pylist()
        for row, key in enumerate(zip(names, rows.requests.column("index").to_pylist(), strict=True)):
            known[key].append(Pair({}, rows, row))
    wrong: dict[tuple[str, int], tuple[Check[Any], list[Violation]]] = {}
    for seen in view:
        pairs = [Pair(seen, of.rows, of.row) for of in known[str(seen["request_id"]), int(seen["index"])]]
        # a caller may use a name twice
        told = [problem for pair in pairs if (problem := _first_problem(pair))]
        if pairs and len(told) < len(pairs):
            continue
        check, text = told[0] if told else (UNKNOWN, str(UNKNOWN.find(pairs)))
        engine = pairs[0].rows.engine if pairs else next((rows.engine for rows in engines), 0)
        number = pairs[0].number if pairs else None
        name = f"completion {seen['index']} of request {seen['request_id']!r}"
        wrong.setdefault((check.id, engine), (check, []))[1].append(Violation(f"{name}: {text}", number))
    return [Finding(check, engine, len(found), found[:MAX_EXAMPLES]) for (_, engine), (check, found) in wrong.items()]


def _first_problem(pair: Pair) -> tuple[Check[Any], str] | None:
    for check in CHECKS:
        if text := check.find(pair):
            return check, text
    return None
