"""Faults of what the numbers mean."""

from __future__ import annotations

from typing import Any

from corpus.case import SEMANTIC, Case, Fault, Truth
from corpus.rows.building import NUCLEUS, WARM, row, some, tune

READING = "other reading"  # raw for processed; also a parameter that is not applied at all


def truth(*causes: str, first: int | None = 0) -> Truth:
    return Truth(SEMANTIC, causes, first)


def values(since: int = 0, **given: Any) -> tuple[Fault, ...]:
    return (Fault("sampling_values", given, since),)


def off(*names: str, since: int = 0) -> tuple[Fault, ...]:
    return (Fault("sampling_off", {"names": names}, since),)


def sampler(make: Any, group: str) -> list[Case]:
    """Sampling values other than on record; tuning and reporting differ in the values, too."""
    t = make is tune
    k = "sampling value"
    more: dict[str, Any] = {"group": group}
    return [
        make(
            "temperature-off",
            k,
            sampling=WARM,
            faults=off("temperature"),
            truth=truth("other temperature", READING),
            **more,
        ),
        make(
            "temperature-far",
            k,
            sampling=WARM,
            faults=values(temperature=1.3 if t else 1.2),
            truth=truth("other temperature", READING),
            size="0.7 → 1.2",
            **more,
        ),
        make(
            "temperature-near",
            k,
            sampling=WARM,
            faults=values(temperature=0.75 if t else 0.76),
            truth=truth("other temperature", READING),
            size="0.7 → 0.76",
            **more,
        ),
        make(
            "temperature-from",
            k,
            sampling=WARM,
            faults=values(9 if t else 13, temperature=0.9),
            truth=truth("other temperature", READING, first=9 if t else 13),
            size="0.7 → 0.9",
            **more,
        ),
        make("top-p-off", k, sampling=NUCLEUS, faults=off("top_p"), truth=truth("other top_p", READING), **more),
        make(
            "top-p-near",
            k,
            sampling={"temperature": 1.0, "top_p": 0.9},
            faults=values(top_p=0.95 if t else 0.8),
            truth=truth("other top_p", READING),
            size="0.9 → 0.8",
            **more,
        ),
        make(
            "top-k-off",
            k,
            sampling={"temperature": 1.0, "top_k": 10 if t else 8},
            faults=off("top_k"),
            truth=truth("other top_k", READING),
            **more,
        ),
        make(
            "min-p-off",
            k,
            sampling={"temperature": 1.0, "min_p": 0.1 if t else 0.05},
            faults=off("min_p"),
            truth=truth("other min_p", READING),
            **more,
        ),
        make(
            "penalties-off",
            k,
            sampling={"temperature": 1.0, "repetition_penalty": 1.3 if t else 1.2},
            faults=off("repetition"),
            truth=truth("other repetition_penalty", READING),
            **more,
        ),
        make(
            "penalties-other",
            k,
            sampling={"temperature": 1.0, "repetition_penalty": 1.1},
            faults=values(repetition=1.3 if t else 1.25),
            truth=truth("other repetition_penalty", READING),
            size="1.1 → 1.25",
            **more,
        ),
    ]


def meaning(make: Any, group: str) -> list[Case]:
    """Values that are something else than the logprob of the token under the request's parameters."""
    t = make is tune
    more: dict[str, Any] = {"group": group}
    k = "meaning of a value"
    return [
        make("raw", "raw or processed", sampling=WARM, mode="raw", truth=truth(READING), **more),
        make("raw-nucleus", "raw or processed", sampling=NUCLEUS, mode="raw", truth=truth(READING), **more),
        make("processed-for-raw", "raw or processed", sampling=WARM, expect="raw", truth=truth(READING), **more),
        make(
            "mask",
            "hidden mask",
            faults=(Fault("hidden_mask", {"first": 200, "num": 300}),),
            truth=truth("hidden mask", "constant offset"),
            size="300 ids",
            source="verl PR#7882",
            **more,
        ),
        make(
            "mask-from",
            "hidden mask",
            faults=(Fault("hidden_mask", {"first": 300 if t else 260, "num": 40}, 8),),
            truth=truth("hidden mask", "constant offset", first=8),
            size="40 ids, at token 8",
            source="verl PR#7882",
            **more,
        ),
        make(
            "bias",
            "hidden mask",
            faults=(Fault("hidden_bias", {"first": 280, "num": 200, "by": 1.5}),),
            truth=truth("hidden bias", "hidden mask", "constant offset"),
            size="+1.5 on 200 ids",
            **more,
        ),
        make(
            "padded",
            "hidden mask",
            weights={0: "padded"},
            truth=truth("padded head"),
            size="1,024 rows",
            **more,
        ),
        make(
            "wrong-entry",
            k,
            faults=(Fault("wrong_entry"),),
            truth=truth("most likely token's value"),
            source="NeMo-RL PR#3297",
            **more,
        ),
        make(
            "shifted",
            k,
            faults=(Fault("shifted", {}, 0),),
            truth=truth("shifted by one", first=1),
            source="AReaL#1736",
            **more,
        ),
        make(
            "permuted",
            k,
            faults=(Fault("permuted"),),
            truth=truth("values of another row"),
            source="RL-Kernel#335",
            **more,
        ),
        make(
            "zeros",
            "sentinel",
            faults=(Fault("sentinel", {"value": 0.0, "every": 5 if t else 4}),),
            truth=truth("sentinel values", first=4 if t else 3),
            source="NeMo#4218",
            **more,
        ),
        make(
            "minus-9999",
            "sentinel",
            faults=(Fault("sentinel", {"value": -9999.0, "every": 7 if t else 6}),),
            truth=truth("sentinel values", first=6 if t else 5),
            **more,
        ),
        make(
            "minus-1e10",
            "sentinel",
            faults=(Fault("sentinel", {"value": -1e10, "every": 9}),),
            truth=truth("sentinel values", first=8),
            source="ms-swift#9767",
            **more,
        ),
        make(
            "nan",
            "sentinel",
            faults=(Fault("sentinel", {"value": "nan", "every": 6 if t else 8}),),
            truth=truth("sentinel values", first=5 if t else 7),
            source="miles#2662, TRL#6693",
            **more,
        ),
        make("bits", k, faults=(Fault("other_base"),), truth=truth("another unit"), **more),
        make(
            "rounded-logprobs", "rounding", faults=(Fault("rounded_logprobs"),), truth=truth("rounded logprobs"), **more
        ),
        make(
            "rounded-values",
            "rounding",
            sampling=NUCLEUS if t else {"temperature": 0.7, "top_p": 0.9},
            faults=(Fault("rounded_values"),),
            truth=truth("rounded sampling values", "other temperature"),
            size="0.7 → 0.69921875",
            **more,
        ),
        make(
            "sampled-otherwise",
            "agreeing but wrong",
            faults=(Fault("sampled_otherwise", {"temperature": 0.7 if t else 1.4}),),
            truth=truth("drawn otherwise"),
            **more,
        ),
    ]


ROWS: list[Case] = [
    *some(
        sampler(tune, "v1-fp32"),
        "temperature-off temperature-far temperature-near temperature-from top-p-off "
        "top-p-near top-k-off min-p-off penalties-off",
    ),
    *some(
        meaning(tune, "v1-fp32"),
        "raw processed-for-raw mask mask-from bias padded wrong-entry shifted permuted zeros minus-9999 minus-1e10 nan "
        "bits rounded-logprobs rounded-values sampled-otherwise",
    ),
    *sampler(row, "v1-fp32"),
    *[case for case in meaning(row, "v1-fp32") if not case.name.endswith("-padded")],
    *some(sampler(row, "v0-fp32"), "temperature-off temperature-near top-p-off top-k-off penalties-off"),
    *some(sampler(row, "latest-fp32"), "temperature-from top-p-off penalties-off"),
    *some(meaning(row, "latest-fp32"), "raw mask wrong-entry"),
    *some(meaning(row, "v1-bf16"), "raw mask wrong-entry"),
    *some(sampler(row, "v1-bf16"), "temperature-far top-p-off"),
    *some(meaning(row, "v1-gemma"), "raw mask"),
    *some(sampler(row, "v1-gemma"), "temperature-off"),
]
