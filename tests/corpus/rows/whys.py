"""Why verdicts miss, where that is known: by the end of a row's name."""

from __future__ import annotations

from dataclasses import replace

from corpus.case import REPORT, Case

FALSE = "a false alarm"
PACKED = "the engine packs Linear weights, which then have no fingerprint"
WHYS = {
    "gemma-t1": f"{FALSE}: an offset of 2e-5 nats, float32's own over 262,144 tokens",
    "tight-chunked": f"{FALSE}: an offset of 9e-6 nats, float32's own",
    "latest-raw-raw": f"{FALSE}: one token 1.8e-5 nats off, 4.5 times the noise that the controls show",
    "without-q-proj": PACKED,
    "gate-20": "the module is named; that its weights are other ones and its kernel is not cannot be told",
    "tile-1000": "mean abs d is 1.3 times that of a clean run, and six rollouts are too few for one change of all",
    "article": "the head's precision is not told apart behind the other three",
}


def with_why(case: Case) -> Case:
    if case.use != REPORT:
        return case
    name = case.name.removeprefix(f"{REPORT}-")
    return replace(case, why=WHYS.get(name) or WHYS.get(name.partition("-")[2], ""))
