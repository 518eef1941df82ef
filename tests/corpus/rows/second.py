"""The second set: faults of kinds that no detector was written for, scored once before anybody looked at them.

What is right was settled here before the first of them was replayed.
"""

from __future__ import annotations

from typing import Any

from corpus.case import PATH, SECOND, SEMANTIC, Ask, Case, Do, Fault, Truth
from corpus.rows.building import WARM, row
from corpus.rows.clean import LOADED, STEP

READING = "other reading"
OLD, OTHER, TENSORS, UNKNOWN = "older weights", "other checkpoint", "kept tensors", "unknown weights"
STALE, FOREIGN, CACHED, MODULE = "stale prefix blocks", "foreign blocks", "cached requests", "module"
WARMER = {"temperature": 0.8, "top_p": 0.95}
ALLOWED = {"temperature": 1.0, "allowed_token_ids": list(range(0, 49152, 2))}


def second(name: str, kind: str, **fields: Any) -> Case:
    return row(name, kind, use=SECOND, **fields)


def fault(name: str, since: int = 0, **args: Any) -> tuple[Fault, ...]:
    return (Fault(name, args, since),)


def path(*causes: str, first: int | None = 0, module: str = "") -> Truth:
    return Truth(PATH, causes, first, module)


def semantic(*causes: str, first: int | None = 0) -> Truth:
    return Truth(SEMANTIC, causes, first)


def returned(how: str, since: int = 0) -> tuple[Fault, ...]:
    return fault("returned", since, how=how)


def module(name: str, where: str, faults: tuple[Fault, ...], kind: str = "module", **more: Any) -> Case:
    first = max(0, faults[0].since)
    return second(name, kind, faults=faults, probe=True, truth=path(MODULE, first=first, module=where), **more)


def hits(before: tuple[Fault, ...] = (), **sampling: Any) -> tuple[Ask | Do, ...]:
    first, then = (Ask(num=num, tokens=n, prompt="shared:96", sampling=sampling) for num, n in ((2, 2), (8, 20)))
    return (first, *(Do("fault", one.name) for one in before), then)


ALL = "all of one kind"
LOST, SCALED = fault("scaled_blocks", -1, by=0.0), fault("scaled_blocks", -1, by=0.9)

ROWS: list[Case] = [
    # the forward
    module("softmax-scale", "attn", fault("softmax_scale_all", by=1.1), ALL, size="× 1.1"),
    module("rope-linear", "rotary_emb|attn", fault("rope_linear", factor=1.25), ALL, source="vllm PR#43419"),
    module("final-norm", " norm ", fault("no_final_norm"), source="prime-rl nixl-kl-investigation"),
    module("embedding-scaled", "embed", fault("embedding_scaled", by=1.1), size="× 1.1"),
    module("norms-eps", "norm", fault("norms_eps", eps=1e-3), ALL, size="1e-5 → 1e-3", source="vllm PR#35515"),
    module("layer-skipped", "layers.17", fault("layer_skipped", layer=17)),
    module("gelu", "mlp", fault("activation_gelu", layers=None), ALL),
    module("gelu-one", "layers.21.mlp", fault("activation_gelu", layers=[21])),
    module("value-heads", "layers.8.self_attn", fault("value_heads_rolled", layer=8)),
    module("values-rounded", "layers.3.self_attn", fault("values_rounded", 7, layer=3), size="5 bits"),
    module("softcap", "lm_head", fault("logits_capped", at=30.0), source="vllm#7419"),
    second("logits-rounded", "head", faults=fault("logits_rounded"), truth=path("bfloat16 head"), source="vllm#48641"),
    module("int4-from", "layers.8.mlp", fault("mlp_quantised", 6, layer=8, how="int4"), group="v1-bf16"),
    module("gelu-one", "layers.21.mlp", fault("activation_gelu", layers=[21]), group="v0-fp32"),
    second(
        "recomputed",
        "position or batch",
        group="v1-tight",
        steps=(Ask(num=12, tokens=40, prompt="long:36"),),
        faults=fault("recomputed_wrong", layer=5, after=37, by=1.5),
        truth=path("preempted requests", first=None),
        source="vllm PR#57970",
    ),
    # the sampler
    second(
        "penalties-of-output",
        "sampling value",
        sampling={"temperature": 1.0, "repetition_penalty": 1.3},
        faults=fault("penalties_of_output"),
        truth=semantic("other repetition_penalty", first=None),
    ),
    second(
        "bias-ignored",
        "sampling value",
        sampling={"temperature": 1.0, "logit_bias": {284: 4.0, 339: 3.0, 253: 3.0}},
        faults=fault("bias_ignored"),
        truth=semantic(READING, "hidden bias", "hidden mask", first=0),
    ),
    second(
        "allowed-ignored",
        "sampling value",
        sampling=ALLOWED,
        faults=fault("allowed_ignored"),
        truth=semantic(READING, "hidden mask", "constant offset"),
    ),
    second(
        "temperatures-mixed-up",
        "sampling value",
        steps=(Ask(sampling={"each": ({"temperature": 0.6}, {"temperature": 1.2})}),),
        faults=fault("temperatures_mixed_up"),
        truth=semantic("other temperature"),
    ),
    second(
        "half-the-words",
        "hidden mask",
        faults=fault("hidden_mask", first=24576, num=24576),
        truth=semantic("hidden mask", "constant offset"),
        size="24,576 ids",
    ),
    second(
        "every-fourth-word",
        "hidden mask",
        faults=fault("hidden_mask", first=200, num=12000, every=4),
        truth=semantic("hidden mask", "constant offset"),
        size="12,000 ids",
    ),
    second("padded", "hidden mask", weights={0: "padded"}, truth=semantic("padded head"), source="verl#1398"),
    # the values
    second(
        "two-before", "meaning of a value", faults=returned("two before"), truth=semantic("shifted by one", first=2)
    ),
    second(
        "two-rows-on",
        "meaning of a value",
        faults=returned("two rows on", 9),
        truth=semantic("values of another row", first=9),
        source="RL-Kernel#335",
    ),
    second("negated", "meaning of a value", faults=returned("negated"), truth=semantic("another unit")),
    second(
        "probabilities",
        "meaning of a value",
        sampling=WARM,
        faults=returned("probabilities"),
        truth=semantic("another unit"),
    ),
    second(
        "decimals", "rounding", sampling=WARMER, faults=returned("two decimals"), truth=semantic("rounded logprobs")
    ),
    second("floor", "sentinel", faults=returned("at least -3"), truth=semantic("sentinel values", first=None)),
    second(
        "last-token",
        "sentinel",
        faults=fault("sentinel", value=0.0, every=20),
        truth=semantic("sentinel values", first=19),
        source="open-instruct PR#1041",
    ),
    # weights
    second(
        "layers-swapped",
        "weights",
        engine_weights="swapped-12-13",
        probe=True,
        truth=path(UNKNOWN, TENSORS, MODULE, module="layers.12|layers.13"),
    ),
    second(
        "heads-swapped",
        "weights",
        engine_weights="heads-10",
        probe=True,
        truth=path(UNKNOWN, MODULE, module="layers.10"),
    ),
    second(
        "norms-moved", "weights", engine_weights="norms-moved", truth=path(UNKNOWN, TENSORS), source="prime-rl#1167"
    ),
    second("merged-adapter", "weights", engine_weights="merged", truth=path(UNKNOWN, MODULE), source="TRL#6688"),
    second(
        "swapped",
        "weights",
        engine_weights="swapped-12-13",
        group="v0-fp32",
        truth=path(UNKNOWN, TENSORS, MODULE),
    ),
    second(
        "update-late",
        "in-flight update",
        steps=(Ask(during=((5, Do("claim")), (12, Do("load", STEP)))),),
        weights={**LOADED, 2: STEP},
        truth=path(OLD, OTHER, first=5),
        source="vllm#54443",
    ),
    second(
        "update-back",
        "in-flight update",
        steps=(Ask(during=((7, Do("load", STEP)), (13, Do("load", "base")))),),
        weights={**LOADED, 2: STEP},
        truth=path(OLD, OTHER, first=13),
    ),
    # the cache
    second("blocks-lost", "foreign blocks", steps=hits(LOST), faults=LOST, truth=path(FOREIGN, CACHED)),
    second(
        "blocks-scaled", "foreign blocks", steps=hits(SCALED), faults=SCALED, truth=path(FOREIGN, CACHED), size="× 0.9"
    ),
    second(
        "stale-3",
        "stale prefix",
        group="v1-bf16",
        steps=(*hits()[:1], Do("load", "step1"), *hits()[1:]),
        weights={0: "base", 1: "step1"},
        truth=path(STALE),
    ),
    # several at once
    second(
        "temperature-behind",
        "composite",
        sampling=WARM,
        faults=fault("sampling_values", temperature=1.1),
        weights={0: "step1"},
        truth=semantic("other temperature|other reading", "older weights|other checkpoint"),
    ),
    second(
        "raw-shifted",
        "composite",
        mode="raw",
        sampling=WARM,
        faults=fault("shifted"),
        truth=semantic("shifted by one", "other reading", first=None),
    ),
    second(
        "zeros-int4",
        "composite",
        faults=(*fault("sentinel", value=0.0, every=5), *fault("mlp_quantised", layer=9, how="int4")),
        probe=True,
        truth=semantic("sentinel values", MODULE, first=None),
    ),
    second(
        "mask-stale",
        "composite",
        steps=(*hits()[:1], Do("load", "step1"), *hits()[1:]),
        faults=fault("hidden_mask", first=200, num=300),
        weights={0: "base", 1: "step1"},
        truth=semantic("hidden mask|constant offset", STALE),
    ),
]
