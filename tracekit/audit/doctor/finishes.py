"""Finishes: once per request, with the output that the tokens show, and nothing accepted afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.audit.findings import BREAKS_REPLAY, Array, Broken, Check
from tracekit.audit.rows import EngineRows
from tracekit.join import pick
from tracekit.plural import plural


def _accepted(rows: EngineRows) -> tuple[Array, Array]:
    """How many tokens were accepted of the request of each finish, and the place of the last of them, or -1."""
    request, of = rows["finishes"]["request"], rows.accepted["request"]
    begin, end = np.searchsorted(of, request, side="left"), np.searchsorted(of, request, side="right")
    return end - begin, np.where(end > begin, end - 1, -1)


def _twice(rows: EngineRows) -> Iterator[Broken]:
    request = rows["finishes"]["request"]
    again = np.r_[False, request[1:] == request[:-1]][: request.size]
    yield Broken(again, rows["finishes"], lambda _: "finished a second time")


def _count(rows: EngineRows) -> Iterator[Broken]:
    told, (accepted, _) = rows["finishes"]["num_output_tokens"], _accepted(rows)
    before = rows.before_of(rows["finishes"]["request"])
    yield Broken(
        told != accepted + before,
        rows["finishes"],
        lambda i: (
            f"finished with an output of {plural(int(told[i]), 'token')}, of which {accepted[i]} appear as accepted"
        ),
    )


def _late(rows: EngineRows) -> Iterator[Broken]:
    done, (_, last) = rows["finishes"], _accepted(rows)
    step = pick(rows.accepted["engine_step"], last, -1)
    yield Broken(step > done["engine_step"], done, lambda i: f"accepted a token in engine step {step[i]} later")


_NEEDS = frozenset({"tokens", "finishes"})
_LEAVE_OUT = "Leave the requests it names out of any comparison, and report the trace with the version of vLLM."

CHECKS = (
    Check(
        "finish-twice",
        BREAKS_REPLAY,
        "A request finishes once, else two outputs were taken for one.",
        _LEAVE_OUT,
        _twice,
        _NEEDS,
    ),
    Check(
        "finish-count",
        BREAKS_REPLAY,
        "A request finishes with as many tokens as were accepted, else one is missing or its client never had it.",
        _LEAVE_OUT,
        _count,
        _NEEDS,
    ),
    Check(
        "token-after-finish",
        BREAKS_REPLAY,
        "Nothing is accepted after a request finished, else the client does not have that token.",
        _LEAVE_OUT,
        _late,
        _NEEDS,
    ),
)
