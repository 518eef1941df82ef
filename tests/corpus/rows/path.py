"""Faults of one module or kernel, at several sizes."""

from __future__ import annotations

from typing import Any

from corpus.case import PATH, Ask, Case, Fault, Truth
from corpus.rows.building import row, some, tune

MODULE = "module"


def one(name: str, since: int = 0, **args: Any) -> tuple[Fault, ...]:
    return (Fault(name, args, since),)


def truth(module: str, *causes: str, first: int = 0) -> Truth:
    return Truth(PATH, causes or (MODULE,), first, module)


def modules(make: Any, group: str) -> list[Case]:
    t = make is tune
    a, b, c = (4, 11, 19) if t else (6, 14, 23)
    # where a module is to be named, its states are needed
    more: dict[str, Any] = {"group": group, "probe": True}
    at = 10 if t else 12
    k = "module"
    return [
        make(
            "head-zeroed", k, faults=one("head_zeroed", layer=a, head=2), truth=truth(f"layers.{a}.self_attn"), **more
        ),
        make(
            "query",
            k,
            faults=one("query_scaled", layer=b, by=1.2),
            truth=truth(f"layers.{b}.self_attn"),
            size="× 1.2",
            **more,
        ),
        make(
            "query-from",
            k,
            faults=one("query_scaled", since=at, layer=a, by=1.3),
            truth=truth(f"layers.{a}.self_attn", first=at),
            size="× 1.3",
            **more,
        ),
        make(
            "rope-layer",
            k,
            faults=one("rope_theta", layers=[b], theta=5e4),
            truth=truth(f"layers.{b}.self_attn"),
            size="10⁵ → 5·10⁴",
            **more,
        ),
        make(
            "rope-all",
            "all of one kind",
            faults=one("rope_theta", layers=None, theta=5e4),
            truth=truth("rotary_emb", "rope", MODULE),
            source="SkyRL PR#976",
            **more,
        ),
        make(
            "down",
            k,
            faults=one("module_scaled", layer=c, path="mlp.down_proj", by=1.1),
            truth=truth(f"layers.{c}.mlp"),
            size="× 1.1",
            **more,
        ),
        make(
            "down-small",
            k,
            faults=one("module_scaled", layer=c, path="mlp.down_proj", by=1.02),
            truth=truth(f"layers.{c}.mlp"),
            size="× 1.02",
            **more,
        ),
        make(
            "down-from",
            k,
            faults=one("module_scaled", since=at, layer=b, path="mlp.down_proj", by=1.2),
            truth=truth(f"layers.{b}.mlp", first=at),
            size="× 1.2",
            **more,
        ),
        make(
            "norm",
            k,
            faults=one("module_scaled", layer=a, path="input_layernorm", by=1.02),
            truth=truth(f"layers.{a}"),
            size="× 1.02",
            **more,
        ),
        make(
            "norm-eps",
            k,
            faults=one("norm_eps", layer=1 if t else 2, eps=1e-2),
            truth=truth(f"layers.{1 if t else 2}"),
            size="1e-5 → 1e-2",
            **more,
        ),
        make(
            "norms-narrow",
            "all of one kind",
            faults=one("norm_truncated"),
            truth=truth("norm"),
            source="verl-omni#637",
            **more,
        ),
        make(
            "int8",
            k,
            faults=one("mlp_quantised", layer=b, how="int8"),
            truth=truth(f"layers.{b}.mlp"),
            size="int8",
            **more,
        ),
        make(
            "int4",
            k,
            faults=one("mlp_quantised", layer=b, how="int4"),
            truth=truth(f"layers.{b}.mlp"),
            size="int4",
            **more,
        ),
        make(
            "fp8",
            k,
            faults=one("mlp_quantised", layer=c, how="fp8"),
            truth=truth(f"layers.{c}.mlp"),
            size="fp8",
            **more,
        ),
        make(
            "kv-fp8",
            "all of one kind",
            faults=one("kv_fp8", layers=list(range(30))),
            truth=truth("attn", "kv dtype", MODULE),
            size="fp8, all layers",
            **more,
        ),
        make(
            "mlp-noise",
            k,
            faults=one("module_noise", layer=c, path="mlp", by=0.05),
            truth=truth(f"layers.{c}.mlp"),
            size="5 %",
            **more,
        ),
    ]


def head(make: Any, group: str) -> list[Case]:
    k = "head"
    return [
        make(
            "narrow-head",
            k,
            group=group,
            probe=True,
            faults=one("narrow_head"),
            truth=truth("lm_head", "bfloat16 head"),
            source="the article's fourth fix",
        ),
        make(
            "stale-head",
            k,
            group=group,
            probe=True,
            faults=one("stale_head", by=0.05 if make is tune else 0.04),
            truth=truth("lm_head", MODULE, "other weights", "kept tensors"),
            size="4 %",
        ),
    ]


def strata(make: Any, group: str) -> list[Case]:
    """Faults that only some tokens see."""
    t = make is tune
    layer = 9 if t else 16
    more: dict[str, Any] = {"group": group, "probe": True}
    after = 40 if t else 48
    k = "position or batch"
    return [
        # 10 run together, of which 5 end early: the kernel for large batches is left at half
        make(
            "batch",
            k,
            faults=one("batch_kernel", layer=layer, more_than=5, by=1.25, at_most=16),
            steps=(Ask(sampling={"short": 5}),),
            truth=Truth(PATH, ("certain batch sizes", MODULE), 1, f"layers.{layer}.mlp"),
            **more,
        ),
        make(
            "batch-rows",
            k,
            faults=one("batch_kernel", layer=layer, more_than=5, by=1.3, rows_from=6, at_most=16),
            truth=Truth(PATH, ("certain batch sizes", MODULE), 1, f"layers.{layer}.mlp"),
            **more,
        ),
        make(
            "tile",
            k,
            faults=one("position_kernel", layer=layer, after=after, by=1.3),
            steps=(Ask(prompt=f"long:{after - 10}"),),
            truth=Truth(PATH, ("grows with position", "from a position on", MODULE), 11, f"layers.{layer}.self_attn"),
            source="vllm#54035",
            **more,
        ),
        make(
            "positions",
            k,
            faults=one("positions_off", layer=layer, after=after, by=3),
            steps=(Ask(prompt=f"long:{after - 10}"),),
            truth=Truth(PATH, ("grows with position", "from a position on", MODULE), 11, f"layers.{layer}.self_attn"),
            **more,
        ),
        make(
            "decode",
            k,
            faults=one("decode_kernel", layer=layer, by=1.3),
            truth=Truth(PATH, ("decode steps", MODULE), 1, f"layers.{layer}.self_attn"),
            **more,
        ),
        # without states of modules: where it is, is all that can be told
        make(
            "batch-sizes",
            k,
            faults=one("batch_kernel", layer=layer, more_than=5, by=1.25, at_most=16),
            steps=(Ask(num=4), Ask(num=10)),
            truth=Truth(PATH, ("certain batch sizes",), 1),
            group=group,
        ),
        make(
            "decode-alone",
            k,
            faults=one("decode_kernel", layer=layer, by=1.3),
            truth=Truth(PATH, ("decode steps",), 1),
            group=group,
        ),
        make(
            "edge",
            k,
            faults=one("position_kernel", layer=layer, after=after + 30, by=1.3),
            steps=(Ask(prompt=f"spread:{after}"),),
            truth=Truth(PATH, ("from a position on",), 4),
            source="vllm#54035",
            group=group,
        ),
    ]


ROWS: list[Case] = [
    row(
        "tile-1000",
        "position or batch",
        group="v1-long",
        faults=one("position_kernel", layer=12, after=1000, by=1.3),
        steps=(Ask(num=6, tokens=1500, prompt="long:100"),),
        truth=Truth(PATH, ("grows with position", "from a position on"), 901),
        size="× 1.3",
    ),
    *some(modules(tune, "v1-fp32"), "head-zeroed query-from rope-all down norm int8 int4"),
    *head(tune, "v1-fp32"),
    *strata(tune, "v1-fp32"),
    *some(modules(tune, "v1-bf16"), "query rope-all head-zeroed down int4"),
    *some(modules(tune, "v0-fp32"), "head-zeroed down-from norm int4"),
    *some(modules(tune, "latest-fp32"), "head-zeroed query-from norm down"),
    *some(head(tune, "latest-fp32"), "narrow-head stale-head"),
    *some(strata(tune, "latest-fp32"), "tile"),
    *some(strata(tune, "v0-fp32"), "decode"),
    *modules(row, "v1-fp32"),
    *head(row, "v1-fp32"),
    *strata(row, "v1-fp32"),
    *some(modules(row, "v1-bf16"), "query rope-all"),
    *some(modules(row, "v0-fp32"), "head-zeroed down-from norm"),
    *some(modules(row, "latest-fp32"), "head-zeroed query-from"),
    *some(strata(row, "latest-fp32"), "tile"),
]
