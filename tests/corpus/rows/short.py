"""The few rows of `make accuracy SHORT=1`: a small random model, one start of an engine."""

from __future__ import annotations

from corpus.case import NONE, PATH, SEMANTIC, SHORT, Ask, Case, Do, Fault, Truth
from corpus.rows.building import WARM, row


def short(name: str, layer: str = NONE, first: int | None = None, **fields: object) -> Case:
    truth = Truth(layer, (), first)
    return row(name, layer, group="v1-tiny", use=SHORT, truth=truth, **fields)


def fault(name: str, since: int = 0, **args: object) -> tuple[Fault, ...]:
    return (Fault(name, args, since),)


PREFIX = (Ask(num=2, tokens=2, prompt="shared:96"), Ask(num=8, prompt="shared:96"))

ROWS: list[Case] = [
    short("t1"),
    short("nucleus", sampling={"temperature": 0.8, "top_p": 0.9}),
    short("t003", sampling={"temperature": 0.03}),
    short("penalties", sampling={"temperature": 1.0, "repetition_penalty": 1.2}),
    short("raw-raw", sampling=WARM, mode="raw", expect="raw"),
    short("hits", steps=PREFIX),
    short("update-kept", steps=(Ask(during=((9, Do("load", "step1")),)),), weights={0: "base", 1: "step1"}),
    short("raw", SEMANTIC, 0, sampling=WARM, mode="raw"),
    short("temperature-off", SEMANTIC, 0, sampling=WARM, faults=fault("sampling_off", names=("temperature",))),
    short("behind", PATH, 0, weights={0: "step1"}),
    short("claimed", PATH, 7, steps=(Ask(during=((7, Do("claim")),)),), weights={0: "base", 1: "step1"}),
    short("query-from", PATH, 8, faults=fault("query_scaled", 8, layer=1, by=1.5)),
    short("down", PATH, 0, faults=fault("module_scaled", layer=2, path="mlp.down_proj", by=1.3)),
]
