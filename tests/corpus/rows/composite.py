"""Several faults at once: each of them should be among the causes."""

from __future__ import annotations

from typing import Any

from corpus.case import PATH, SEMANTIC, Ask, Case, Do, Fault, Truth
from corpus.rows.building import WARM, row, some, tune

K = "composite"


def rows(make: Any, group: str) -> list[Case]:
    length = 96
    first = Ask(num=2, tokens=2, prompt=f"shared:{length}", sampling=WARM)
    hit = Ask(num=10, prompt=f"shared:{length}", sampling=WARM)
    more: dict[str, Any] = {"group": group}
    return [
        # the article's first V1 run: raw values, hits of stale blocks, an update that is late, a narrow head
        make(
            "article",
            K,
            mode="raw",
            steps=(first, Do("load", "step1"), hit),
            faults=(Fault("narrow_head"),),
            weights={0: "base", 1: "step2"},
            truth=Truth(
                SEMANTIC, ("other reading", "older weights|unknown weights", "stale prefix blocks", "bfloat16 head"), 0
            ),
            **more,
        ),
        make(
            "raw-behind",
            K,
            mode="raw",
            sampling=WARM,
            weights={0: "step1"},
            truth=Truth(SEMANTIC, ("other reading", "older weights|other checkpoint"), 0),
            **more,
        ),
        make(
            "temperature-int4",
            K,
            sampling=WARM,
            faults=(
                Fault("sampling_values", {"temperature": 1.0}),
                Fault("mlp_quantised", {"layer": 15, "how": "int4"}),
            ),
            truth=Truth(SEMANTIC, ("other temperature|other reading", "module"), 0),
            probe=True,
            **more,
        ),
        make(
            "mask-query",
            K,
            faults=(Fault("hidden_mask", {"first": 200, "num": 300}), Fault("query_scaled", {"layer": 8, "by": 1.4})),
            truth=Truth(SEMANTIC, ("hidden mask", "module"), 0),
            probe=True,
            **more,
        ),
        make(
            "stale-and-head",
            K,
            steps=(
                Ask(num=2, tokens=2, prompt=f"shared:{length}"),
                Do("load", "step1"),
                Ask(num=10, prompt=f"shared:{length}"),
            ),
            faults=(Fault("head_zeroed", {"layer": 5, "head": 1}),),
            weights={0: "base", 1: "step1"},
            truth=Truth(PATH, ("stale prefix blocks", "module"), 0),
            probe=True,
            **more,
        ),
        make(
            "penalty-nucleus",
            K,
            sampling={"temperature": 0.8, "top_p": 0.9, "repetition_penalty": 1.2},
            faults=(Fault("sampling_off", {"names": ["top_p", "repetition"]}),),
            truth=Truth(SEMANTIC, ("other top_p", "other repetition_penalty"), 0),
            **more,
        ),
    ]


ROWS: list[Case] = [
    *some(rows(tune, "v1-fp32"), "article temperature-int4 stale-and-head"),
    *rows(row, "v1-fp32"),
    *some(rows(row, "latest-fp32"), "raw-behind"),
]
