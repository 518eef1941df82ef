"""Recordings with nothing wrong: what people run."""

from __future__ import annotations

from typing import Any

from corpus.case import PATH, Ask, Case, Do, Truth
from corpus.rows.building import NUCLEUS, WARM, row, some, tune

K = "clean"
# vLLM's CPU builds pack a tied head, and a reload leaves it as it was (row "tied-head" of `weights`): no other update
# than one that leaves the embedding alone arrives whole
STEP = "step1-without-embedding"
LOADED = {0: "base", 1: STEP}


def sampled(make: Any, group: str) -> list[Case]:
    more: dict[str, Any] = {"group": group}
    return [
        make("t1", K, **more),
        make("t07", K, sampling=WARM, **more),
        make("t003", K, sampling={"temperature": 0.03}, source="false alarm at T 0.03", **more),
        make("t001", K, sampling={"temperature": 0.01}, source="false alarm at T 0.01", **more),
        make("t13", K, sampling={"temperature": 1.3}, **more),
        make("nucleus", K, sampling=NUCLEUS, **more),
        make("top-k", K, sampling={"temperature": 1.0, "top_k": 20}, **more),
        make("min-p", K, sampling={"temperature": 1.0, "min_p": 0.1}, **more),
        make("penalties", K, sampling={"temperature": 1.0, "repetition_penalty": 1.2, "presence_penalty": 0.3}, **more),
        make("frequency", K, sampling={"temperature": 0.8, "frequency_penalty": 0.5}, **more),
        make("greedy", K, sampling={"temperature": 0.0}, **more),
        make("n2", K, steps=(Ask(num=6, sampling={"n": 2}),), **more),
        make("stop", K, sampling={"temperature": 1.0, "stop": ["\n", " the"]}, **more),
        make("long", K, steps=(Ask(num=6, tokens=16, prompt="long:150"),), **more),
        make("logit-bias", K, sampling={"temperature": 1.0, "logit_bias": {284: 2.0, 339: -5.0}}, **more),
        make("probed", K, probe=True, **more),
        make("one", K, steps=(Ask(num=1, tokens=48),), **more),
    ]


def raw(make: Any, group: str) -> list[Case]:
    more: dict[str, Any] = {"group": group}
    return [
        make("raw-raw", K, sampling=WARM, mode="raw", expect="raw", **more),
        make("raw-nucleus-raw", K, sampling=NUCLEUS, mode="raw", expect="raw", **more),
        make("raw-t1", K, mode="raw", **more),
    ]


def cached(make: Any, group: str) -> list[Case]:
    """Prefix hits, updates with all weights given."""
    warm = Ask(num=2, tokens=2, prompt="shared:96")
    hit = Ask(num=10, prompt="shared:96")
    more: dict[str, Any] = {"group": group}
    return [
        make("hits", K, steps=(warm, hit), source="vllm#5543", **more),
        make("update-reset", K, steps=(warm, Do("load", STEP), Do("reset"), hit), weights=LOADED, **more),
        make("update-between", K, steps=(Ask(num=6), Do("load", STEP), Ask(num=8)), weights=LOADED, **more),
        make(
            "update-kept",
            K,
            steps=(Ask(during=((9, Do("load", STEP)),)),),
            weights=LOADED,
            source="PipelineRL's path",
            **more,
        ),
        make("update-same", K, steps=(Ask(during=((9, Do("claim")),)),), weights={0: "base", 1: "base"}, **more),
        make("two-engines", K, steps=(Ask(num=6), Do("reopen"), Ask(num=6)), **more),
    ]


ROWS: list[Case] = [
    *some(sampled(tune, "v1-fp32"), "t1 t07 t003 nucleus penalties long probed"),
    *some(raw(tune, "v1-fp32"), "raw-raw"),
    *some(cached(tune, "v1-fp32"), "hits update-reset update-kept two-engines"),
    *some(sampled(tune, "v1-bf16"), "t1 t07 t003 nucleus probed"),
    *some(sampled(tune, "v0-fp32"), "probed"),
    *some(sampled(tune, "latest-fp32"), "probed"),
    *sampled(row, "v1-fp32"),
    *raw(row, "v1-fp32"),
    *cached(row, "v1-fp32"),
    *some(sampled(row, "v1-bf16"), "t1 t07 t003 nucleus penalties long probed"),
    *some(raw(row, "v1-bf16"), "raw-raw"),
    *some(cached(row, "v1-bf16"), "hits"),
    *some(sampled(row, "latest-fp32"), "t1 t003 nucleus min-p penalties n2 stop probed"),
    *some(raw(row, "latest-fp32"), "raw-raw"),
    *some(cached(row, "latest-fp32"), "hits update-kept two-engines"),
    *some(sampled(row, "v0-fp32"), "t1 t07 t003 nucleus top-k min-p penalties probed"),
    *some(sampled(row, "v1-gemma"), "t1 t07 nucleus"),
    row("preempted", K, group="v1-tight", steps=(Ask(num=12, tokens=40, prompt="long:36"),)),
    row("preempted-nucleus", K, group="v1-tight", steps=(Ask(num=12, tokens=40, prompt="long:40", sampling=NUCLEUS),)),
    row("chunked", K, group="v1-tight", steps=(Ask(num=4, tokens=16, prompt="long:150"),)),
    row("chunked-t07", K, group="v1-tight", steps=(Ask(num=4, tokens=16, prompt="long:130", sampling=WARM),)),
    row("t1", K, group="v1-lora"),
    # 0.18's CPU build lets the requests beside an adapter's run with it, too
    row(
        "some-adapter",
        "adapter",
        group="v1-lora",
        steps=(Ask(lora="half"),),
        truth=Truth(PATH, (), 0),
        source="miles PR#2075",
    ),
    row("all-adapter", "withheld", group="v1-lora", steps=(Ask(num=6, lora="all"),), truth=Truth(refused=True)),
    row("greedy", K, group="latest-spec", steps=(Ask(num=6, tokens=40, sampling={"temperature": 0.0}),)),
]
