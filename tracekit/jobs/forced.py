"""Force recorded tokens through an engine, in its own environment: `python -m tracekit.jobs.forced JOB.json`.

The engine's own scheduler is given what the recorded one was given, in the same order: requests, aborts, resets and
weights between the same steps. What it then composes is compared with the recorded step, and what its sampler returns
is replaced by the recorded tokens, so that requests go on, stop and give way as they did. JOB.json::

    {"kind": "v1", "engine_args": {"model": "/models/m", ...}, "expected": {"model_config.max_model_len": 256, ...},
     "async_scheduling": false, "model_class": "vllm.model_executor.models.llama.LlamaForCausalLM",
     "requests": [{"id": "a-1", "prompt": [1, 2], "sampling": {...}, "cache_salt": null}, ...],
     "passes": [{"name": "as recorded", "events": [...]}, ...], "output": "/tmp/forced.json", "progress": 7}

An event is one of::

    ["begin"]                        nobody there, and nothing cached
    ["add", request, cached]         admit it; requests go by their index; whether it may read the prefix cache
    ["step", engine_step, [[request, num_tokens, num_computed, [token id, ...]], ...], [preempted request, ...]]
    ["take", engine_step]            let the scheduler have that step's output
    ["abort", [request, ...]]
    ["reset", running]               of the prefix cache; of running requests, too
    ["load", folder]                 weights
    ["room", num_tokens]             that the next step may compute
    ["alone", request, [token id, ...]]    from an empty cache to its end, nobody beside it
    ["prefill", request, [token id, ...]]  prompt and tokens in one prompt, nobody beside it

The output is one JSON object: `facts` of the engine, `fingerprints` of its weights by folder, and for each pass `secs`,
`stopped` (a sentence where the engine could not go on as recorded, else null), `tokens` ([request, engine step or
output index, logprob as the engine reports it], float32 values as Python prints them) and `blocks`, those that each
admission found computed ([engine step, request, [block id, ...]]). Or, where the engine cannot be had, only `refused`,
a sentence.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracekit.jobs.forced_engine import CannotForceError, Engine, Token


def play(engine: Engine, events: list[list[Any]], told: Any) -> dict[str, Any]:
    """Play one pass; what the engine cannot go on with ends it."""
    tokens: list[Token] = []
    stopped, started = None, time.monotonic()
    methods: dict[str, Callable[..., list[Token] | None]] = {
        "begin": engine.begin,
        "room": engine.room,
        "add": engine.add,
        "take": engine.take,
        "abort": engine.abort,
        "reset": engine.reset,
        "load": engine.reload,
        "step": engine.step,
        "alone": engine.alone,
        "prefill": engine.prefill,
    }
    try:
        for name, *arguments in events:
            made = methods[name](*arguments)
            if made:
                tokens += made
                told(len(made))
    except CannotForceError as reason:
        stopped = str(reason)
    secs = time.monotonic() - started
    return {"secs": secs, "stopped": stopped, "tokens": tokens, "blocks": engine.found()}


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Build the engine and play all passes."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.pop("TRACEKIT_DAEMON", None)  # a re-run is not a recording

    def told(num_tokens: int) -> None:
        os.write(job["progress"], b"%d\n" % num_tokens)

    try:
        engine = _engine(job)
    except CannotForceError as reason:
        return {"refused": str(reason)}
    passes = {own["name"]: play(engine, own["events"], told) for own in job["passes"]}
    return {"facts": engine.facts(), "fingerprints": engine.fingerprints, "passes": passes}


def _engine(job: dict[str, Any]) -> Engine:
    if job["kind"] == "v0":
        from tracekit.jobs.forced_v0 import V0Forced

        return V0Forced(job)
    from tracekit.jobs.forced_v1 import V1Forced

    return V1Forced(job)


def main() -> int:
    """Run the job of argv[1]."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(job["output"]).write_text(json.dumps(run(job)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
