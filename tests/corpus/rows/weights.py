"""Weights that are not what their version says, and prefix blocks that are not of the weights that read them."""

from __future__ import annotations

from typing import Any

from corpus.case import PATH, Ask, Case, Do, Fault, Truth
from corpus.rows.building import row, some, tune

OLD, NEW, TENSORS, OTHER, UNKNOWN, STALE = (
    "older weights",
    "newer weights",
    "kept tensors",
    "other checkpoint",
    "unknown weights",
    "stale prefix blocks",
)


# nothing in a trace tells who wrote KV memory: that requests which hit it diverge, and no others, is all there is
OVERWRITTEN = ("foreign blocks", "cached requests")


def truth(*causes: str, first: int | None = 0, module: str = "") -> Truth:
    return Truth(PATH, causes, first, module)


def from_start(make: Any, group: str) -> list[Case]:
    """The trainer sent step 1 and believes that the engine has it."""
    more: dict[str, Any] = {"group": group, "weights": {0: "step1"}}
    k = "weights"
    kept = "kept tensors"
    return [
        make("behind", k, truth=truth(OLD, OTHER), size="3 %", **more),
        make("behind-small", k, group=group, weights={0: "step1-small"}, truth=truth(OLD, OTHER), size="1 %"),
        make("behind-tiny", k, group=group, weights={0: "step1-tiny"}, truth=truth(OLD, OTHER), size="0.3 %"),
        make("ahead", k, engine_weights="step2", truth=truth(NEW, UNKNOWN), size="3 %", **more),
        make(
            "without-3-17",
            kept,
            engine_weights="step1-without-3-17",
            truth=truth(TENSORS),
            source="verl PR#7070",
            **more,
        ),
        make(
            "without-9",
            kept,
            engine_weights="step1-without-9",
            truth=truth(TENSORS, module="layers.9"),
            probe=True,
            **more,
        ),
        make(
            "without-norms",
            kept,
            engine_weights="step1-without-norms",
            truth=truth(TENSORS),
            source="prime-rl nixl-kl-investigation",
            **more,
        ),
        make(
            "without-embedding",
            kept,
            engine_weights="step1-without-embedding",
            truth=truth(TENSORS, module="embed_tokens"),
            source="prime-rl nixl-kl-investigation",
            **more,
        ),
        make(
            "without-mlp-12",
            kept,
            engine_weights="step1-without-mlp-12",
            truth=truth(TENSORS, module="layers.12.mlp"),
            probe=True,
            **more,
        ),
        make("without-q-proj", kept, engine_weights="step1-without-q-proj", truth=truth(TENSORS), **more),
        make(
            "layer-7",
            k,
            group=group,
            engine_weights="layer-7",
            truth=truth(UNKNOWN, TENSORS, module="layers.7"),
            probe=True,
            size="5 % of a layer",
        ),
        make(
            "gate-20",
            k,
            group=group,
            engine_weights="gate-20",
            truth=truth(UNKNOWN, TENSORS, module="layers.20.mlp"),
            probe=True,
            size="5 % of a matrix",
        ),
    ]


def in_flight(make: Any, group: str) -> list[Case]:
    """An update while requests run."""
    at = 8 if make is tune else 11
    load = Ask(during=((at, Do("load", "step1")),))
    claim = Ask(during=((at, Do("claim")),))
    k = "in-flight update"
    return [
        make(
            "claimed",
            k,
            group=group,
            steps=(claim,),
            weights={0: "base", 1: "step1"},
            truth=truth(OLD, OTHER, first=at),
            size="3 %",
        ),
        make(
            "unknown-update",
            k,
            group=group,
            steps=(load,),
            weights={0: "base", 1: "base"},
            truth=truth(UNKNOWN, NEW, first=at),
            size="3 %",
        ),
        make(
            "partial-update",
            k,
            group=group,
            steps=(Ask(during=((at, Do("load", "step1-without-3-17")),)),),
            weights={0: "base", 1: "step1"},
            truth=truth(TENSORS, OLD, first=at),
            size="3 %",
            source="verl PR#7070",
        ),
    ]


def tied(make: Any, group: str) -> list[Case]:
    """What vLLM's CPU builds do by themselves: a reload renews the embedding, not the head tied to it."""
    steps = (Ask(num=6), Do("load", "step1"), Ask(num=8))
    right = truth(TENSORS, UNKNOWN, module="lm_head")
    weights = {0: "base", 1: "step1"}
    return [make("tied-head", "kept tensors", group=group, steps=steps, weights=weights, truth=right, probe=True)]


def stale(make: Any, group: str) -> list[Case]:
    """A prefix is computed, the weights change, the prefix is hit."""
    length = 96 if make is tune else 128
    first = Ask(num=2, tokens=2, prompt=f"shared:{length}")
    hit = Ask(num=10, prompt=f"shared:{length}")

    def steps(variant: str) -> tuple[Ask | Do, ...]:
        return (first, Do("load", variant), hit)

    k = "stale prefix"
    return [
        make(
            "stale-3",
            k,
            group=group,
            steps=steps("step1"),
            weights={0: "base", 1: "step1"},
            truth=truth(STALE),
            size="3 %",
            source="miles#2783, NeMo-RL#4018",
        ),
        make(
            "stale-1",
            k,
            group=group,
            steps=steps("step1-small"),
            weights={0: "base", 1: "step1-small"},
            truth=truth(STALE),
            size="1 %",
        ),
    ]


def blocks(make: Any, group: str) -> list[Case]:
    """A prefix hit that finds something else."""
    length = 96 if make is tune else 128
    first = Ask(num=2, tokens=2, prompt=f"shared:{length}")
    hit = Ask(num=10, prompt=f"shared:{length}")
    k = "foreign blocks"
    return [
        make(
            "foreign-blocks",
            k,
            group=group,
            steps=(first, Do("fault", "foreign_blocks"), hit),
            faults=(Fault("foreign_blocks", {}, -1),),
            truth=truth(*OVERWRITTEN),
        ),
        make(
            "noisy-blocks",
            k,
            group=group,
            steps=(first, Do("fault", "noisy_blocks"), hit),
            faults=(Fault("noisy_blocks", {"by": 0.1 if make is tune else 0.12}, -1),),
            truth=truth(*OVERWRITTEN),
            size="10 %",
        ),
        make(
            "hash-collision",
            k,
            group=group,
            steps=(Ask(num=2, tokens=2, prompt="long:80"), hit),
            faults=(Fault("hash_collision"),),
            truth=truth("foreign blocks"),
        ),
    ]


def replicas(make: Any, group: str) -> list[Case]:
    """Two engines in one trace, the second of which has other weights."""
    one = Ask(num=8)
    k = "replica"
    return [
        make(
            "replica-missed",
            k,
            group=group,
            steps=(one, Do("reopen", "step1"), one),
            engine_weights="base",
            weights={0: "step1"},
            truth=truth("one engine", OTHER, OLD),
            source="TRL PR#5932",
            size="3 %",
        ),
    ]


ROWS: list[Case] = [
    *some(
        from_start(tune, "v1-fp32"),
        "behind behind-small without-3-17 without-norms without-embedding without-mlp-12 gate-20",
    ),
    *some(in_flight(tune, "v1-fp32"), "claimed partial-update"),
    *stale(tune, "v1-fp32"),
    *some(blocks(tune, "v1-fp32"), "foreign-blocks hash-collision"),
    *replicas(tune, "v1-fp32"),
    *from_start(row, "v1-fp32"),
    *in_flight(row, "v1-fp32"),
    *stale(row, "v1-fp32"),
    *blocks(row, "v1-fp32"),
    *replicas(row, "v1-fp32"),
    *tied(tune, "v1-fp32"),
    *tied(row, "v1-fp32"),
    *tied(row, "latest-fp32"),
    *some(from_start(row, "v0-fp32"), "behind layer-7"),
    *some(from_start(row, "v1-bf16"), "behind"),
    *some(from_start(row, "latest-fp32"), "without-9"),
    *some(in_flight(row, "latest-fp32"), "claimed"),
    *some(stale(row, "latest-fp32"), "stale-3"),
]
