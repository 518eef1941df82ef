"""What a trace of a real engine says, in the shape in which its client saw it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.engine import run_cli
from tracekit.tables import ACCEPTED
from tracekit.trace.reader import Trace, open_trace


def completions(trace: Trace) -> dict[tuple[str, str], dict[str, Any]]:
    """Accepted tokens and logprobs by (external id, index of the completion)."""
    requests = {r["request"]: r for r in trace.table("requests").to_pylist()}
    reasons = {f["request"]: f["reason"] for f in trace.table("finishes").to_pylist()}
    found = {
        (r["external_id"], str(r["index"])): {
            "prompt": r["prompt_token_ids"],
            "token_ids": [],
            "logprobs": [],
            "positions": [],
            "reason": reasons.get(number),
        }
        for number, r in requests.items()
    }
    for token in trace.table("tokens").to_pylist():
        if token["flags"] & ACCEPTED:
            request = requests[token["request"]]
            seen = found[request["external_id"], str(request["index"])]
            seen["token_ids"].append(token["token_id"])
            seen["logprobs"].append(float(np.float32(token["rollout_logprob"])).hex())
            seen["positions"].append(token["position"])
    return found


def assert_alternatives(trace: Trace, view: Any) -> None:
    """The topk table has the two alternatives that each child of "many" asked for, and nobody else's."""
    numbers = {(r["external_id"], str(r["index"])): r["request"] for r in trace.table("requests").to_pylist()}
    topk = trace.table("topk").to_pylist()
    assert {row["request"] for row in topk} == {number for (name, _), number in numbers.items() if name == "many"}
    for index, client in view["many"].items():
        mine = [row for row in topk if row["request"] == numbers["many", index]]
        assert len(mine) == 2 * len(client["tops"]) == 48
        for i, tops in enumerate(client["tops"]):
            found = [
                (row["rank"], row["token_id"], float(np.float32(row["logprob"])).hex())
                for row in mine[2 * i : 2 * i + 2]
            ]
            beside = [list(row) for row in found]
            # the client's dict holds the sampled token too
            sampled = client["token_ids"][i]
            assert beside == [row for row in tops if row[1] != sampled or row in beside] and len(tops) in (2, 3)
            assert {row["position"] for row in mine[2 * i : 2 * i + 2]} == {10 + i}


def record(trace: Path, *job: object) -> Trace:
    """Run a job in the V0 environment under the recorder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHDYNAMO_DISABLE", "1")
        patch.setenv("TRACEKIT_STRICT", "1")
        done = run_cli("record", "--engine", "v0", "-o", trace, "--", "python", *job)
    assert done.returncode == 0, done.stderr[-4000:]
    return open_trace(trace)


def numbers(trace: Trace) -> dict[str, int]:
    """Number of each request by the caller's id (of the last completion where there are several)."""
    return {r["external_id"]: r["request"] for r in trace.table("requests").to_pylist()}
