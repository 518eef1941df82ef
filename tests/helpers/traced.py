"""What a trace of a real engine says, in the shape in which its client saw it."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tracekit.tables import ACCEPTED
from tracekit.trace.reader import Trace


class OneEngine:
    """What a trace of several engines holds of one of them."""

    def __init__(self, trace: Trace, engine: int) -> None:
        self._trace, self._engine = trace, engine
        self.path, self.complete = trace.path, trace.complete

    def engines(self) -> list[dict[str, Any]]:
        return [row for row in self._trace.engines() if row["engine"] == self._engine]

    def table(self, name: str) -> pa.Table:
        return self._trace.table(name).filter(pc.field("engine") == self._engine)

    def rows(self, name: str) -> int:
        return self.table(name).num_rows

    def all_losses(self) -> list[Any]:
        return [loss for loss in self._trace.all_losses() if loss.engine == self._engine]


def completions(trace: Trace | OneEngine) -> dict[tuple[str, str], dict[str, Any]]:
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


def assert_alternatives(trace: Trace | OneEngine, view: Any) -> None:
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


def numbers(trace: Trace | OneEngine) -> dict[str, int]:
    """Number of each request by the caller's id (of the last completion where there are several)."""
    return {r["external_id"]: r["request"] for r in trace.table("requests").to_pylist()}


def prompts(trace: Trace | OneEngine) -> dict[tuple[int, int], list[Any]]:
    """Prompt logprobs by (engine, request) as vLLM hands them to a client: {token id: [logprob, rank]} by position."""
    found: dict[tuple[int, int], list[Any]] = {}
    for row in trace.table("prompt_logprobs").to_pylist():
        own = found.setdefault((row["engine"], row["request"]), [None])
        assert row["position"] == len(own)
        own.append({str(row["token_id"]): [float(row["logprob"]).hex(), row["rank"]]})
    for row in trace.table("prompt_topk").to_pylist():
        beside = found[row["engine"], row["request"]][row["position"]]
        beside[str(row["token_id"])] = [float(row["logprob"]).hex(), row["rank"]]
    return found
