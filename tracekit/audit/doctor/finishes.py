"""Finishes: once a request, with the output that the tokens show, and nothing accepted afterwards."""

import numpy as np

from tracekit.audit.findings import Finding, finding
from tracekit.audit.rows import EngineRows

__all__ = ["finishes"]


def finishes(rows: EngineRows) -> list[Finding]:
    """A request finishes once, with as many tokens as were accepted, the last of them not after it."""
    done, tokens = rows["finishes"], rows.accepted
    request = done["request"]
    again = np.r_[False, request[1:] == request[:-1]] if request.size else request.astype(bool)
    begin = np.searchsorted(tokens["request"], request, side="left")
    end = np.searchsorted(tokens["request"], request, side="right")
    accepted = end - begin
    last = tokens["engine_step"][end - 1] if tokens["engine_step"].size else np.zeros_like(end)
    late = (accepted > 0) & (last > done["engine_step"])
    return [
        *finding("finish-twice", rows.engine, again, done, lambda _: "finished a second time"),
        *finding(
            "finish-count",
            rows.engine,
            done["num_output_tokens"] != accepted,
            done,
            lambda i: f"finished with {done['num_output_tokens'][i]} tokens, {accepted[i]} were accepted",
        ),
        *finding(
            "token-after-finish", rows.engine, late, done, lambda i: f"accepted a token in engine step {last[i]} later"
        ),
    ]
