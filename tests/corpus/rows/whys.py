"""Why verdicts miss, where that is known: by the end of a row's name."""

from __future__ import annotations

from dataclasses import replace

from corpus.case import REPORT, Case

FALSE = "a false alarm"
UNPROBED = "recorded without --probe, so that no module can be named"
PACKED = "the engine packs Linear weights, which then have no fingerprint"
WHYS = {
    "gemma-t1": f"{FALSE}: an offset of 2e-5 nats, float32's own over 262,144 tokens",
    "tight-chunked": f"{FALSE}: an offset of 9e-6 nats, float32's own",
    "latest-raw-raw": f"{FALSE}: one token 1.8e-5 nats off, 4.5 times the noise that the controls show",
    "foreign-blocks": "nothing in the trace tells who wrote that memory",
    "noisy-blocks": "as foreign-blocks",
    "hash-collision": "the trace has equal hashes for other tokens, and no detector compares the two",
    "batch": "no detector compares batch sizes within a rollout, and " + UNPROBED,
    "batch-rows": "as batch",
    "decode": "no detector compares prefill and decode, and " + UNPROBED,
    "tile": "the test of position looks for growth, not for an edge, and " + UNPROBED,
    "positions": "as tile",
    "without-mlp-12": PACKED,
    "without-q-proj": PACKED,
    "gate-20": PACKED,
    "rope-all": "the module is named by its layer, not as all of a kind",
    "rounded-logprobs": "no detector looks for values that were rounded after they were computed",
    "rounded-values": "a temperature off by 0.1 % and a top-p of 0.8984 are taken for another top-p",
    "nan": "values that are not finite are withheld, not called a divergence",
    "article": "the head's precision is not told apart behind the other three",
    "temperature-int4": UNPROBED,
    "mask-query": UNPROBED,
    "stale-and-head": UNPROBED,
    "v0-head-zeroed": UNPROBED,
    "v0-down-from": UNPROBED,
    "v0-norm": UNPROBED,
    "latest-head-zeroed": UNPROBED,
    "latest-query-from": UNPROBED,
    "v1b-query": "not found in bfloat16",
    "v1b-rope-all": UNPROBED,
}


def with_why(case: Case) -> Case:
    if case.use != REPORT:
        return case
    name = case.name.removeprefix(f"{REPORT}-")
    return replace(case, why=WHYS.get(name) or WHYS.get(name.partition("-")[2], ""))
