"""A request that is shed leaves no row but its own in `shed`, and every other row of it is counted, to the row."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from test_recorder_rows import Made, Params, request, step
from test_recorder_v0_rows import admitted, part
from test_recorder_v0_rows import step as v0_step

from tracekit.recorder.vllm.events import Admitted, Finished, Preempted
from tracekit.recorder.vllm.v0.rows import V0Rows
from tracekit.recorder.vllm.v1.rows import V1Rows
from tracekit.rpc.columns import count_rows


def v1(shed: set[str]) -> tuple[Counter[str], Counter[str], dict[str, Any]]:
    """Run three requests through steps with alternatives, a preemption, an abort; return rows stored, lost, and all."""
    rows, stored, tables = V1Rows(num_blocks=101), Counter[str](), {}
    for name in "abc":
        rows.is_short = lambda name=name: name in shed  # type: ignore[misc]
        made = request(name)
        made.sampling_params = Params(logprobs=2)
        rows.add(Admitted(1, made))
    wide = Made(
        logprobs=-np.ones((3, 3), "f4"), sampled_token_ranks=np.ones(3, "i8"), cu_num_generated_tokens=None,
        logprob_token_ids=np.ones((3, 3), "i8"),
    )  # fmt: skip
    for options in ({"new": ("a", "b", "c")}, {}, {"preempted": ("b",)}):
        who = [name for name in "abc" if name not in options.get("preempted", ())]
        parts = {name: (4 if options.get("new") else 1, 0) for name in who}
        taken = step(rows, parts, {name: [7] for name in who}, logprobs=wide, **options)
        stored.update(count_rows(taken))
        tables |= taken
    rows.add(Finished(("a", "b", "c"), "abort", 9, 30))
    taken = rows.take()
    stored.update(count_rows(taken))
    assert rows.take_orphans() == {}
    return stored, Counter(rows.take_shed()), tables | taken


def test_of_a_v1_engine() -> None:
    whole, nothing, _ = v1(set())
    assert not nothing and whole["topk"] == 2 * whole["tokens"] > 0
    stored, lost, tables = v1({"b"})
    assert stored.pop("shed") == 1 and stored + lost == whole and lost["requests"] == lost["finishes"] == 1
    assert lost["tokens"] == 2 and lost["topk"] == 4 and lost["scheduled"] == 3
    for name in ("scheduled", "tokens", "finishes"):
        assert 1 not in np.asarray(tables[name]["request"])
    every, lost, _ = v1({"a", "b", "c"})
    assert every.pop("shed") == 3 and set(every) == {"steps"} and every + lost == whole


def v0(shed: set[str]) -> tuple[Counter[str], Counter[str], dict[str, Any]]:
    rows = V0Rows(num_blocks=100, block_size=16)
    for name in "ab":
        rows.is_short = lambda name=name: name in shed  # type: ignore[misc]
        rows.add(admitted(name))
    rows.add(v0_step(0, part("a", 20, is_prompt=True), part("b", 20, is_prompt=True)))
    rows.add(Preempted("b", recomputes=True))
    rows.add(v0_step(1, part("a", 1, is_prompt=False), part("b", 21, is_prompt=True)))
    rows.add(Finished(("a", "b"), "length", 2, 30, 2))
    tables = rows.take()
    assert rows.take_orphans() == {}
    return Counter(count_rows(tables)), Counter(rows.take_shed()), tables


@pytest.mark.parametrize("shed", ["b", "ab"])
def test_of_a_v0_engine(shed: str) -> None:
    whole, nothing, before = v0(set())
    assert not nothing and whole["tokens"] == 4
    stored, lost, tables = v0(set(shed))
    assert stored.pop("shed") == len(shed) and stored + lost == whole and lost["tokens"] == 2 * len(shed)
    # the step itself is that of all requests
    computed = "num_scheduled_tokens"
    assert tables["steps"][computed].tolist() == before["steps"][computed].tolist() == [40, 22]
