"""Replays that the real diagnosis made of seeded runs, as files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from helpers.synthetic import Made, make_run
from tracekit.diagnose.data import Run
from tracekit.diagnose.modules import Boundary, Modules, kinds_off, suspects, weigh
from tracekit.diagnose.result import Data, Result, Scoring, Weights
from tracekit.diagnose.verdict import judge
from tracekit.replay.output import Replay, token_table, write_replay

SCORING = Scoring(
    "tiny", "bfloat16", "float32", "cpu", "packed", "bfloat16", 2.5, 4096, 61.0, 3 << 30, [Weights(0, "/tiny", "given")]
)


def replay_of(run: Run, **data) -> Replay:
    """Judge a run; keywords replace values of its `Data`."""
    judged = judge(run)
    counts = replace(Data(len(run.rollouts), len(run.token_id), 0, 0, [], None, False), **data)
    result = Result.of("0.1.0", SCORING, counts, judged.verdict)
    return Replay(result, token_table(run, judged.tokens))


def write(path: Path, made: Made | None = None, **data) -> Replay:
    """Write the replay of a made run to `path` and return it."""
    found = replay_of(make_run(made or Made()), **data)
    write_replay(found, path)
    return found


def modules_of(num_layers: int = 6, *, off: str = "layers.3.self_attn") -> Modules:
    """What probing would find where one module is off by 50 times its kind."""
    kinds = ("input_layernorm", "self_attn", "post_attention_layernorm", "mlp")
    names = [f"layers.{layer}.{kind}" for layer in range(num_layers) for kind in kinds] + ["norm", "lm_head"]
    every = [(name, np.full(4, 50.0 if name == off else 1.0), np.ones(4)) for name in names]
    weighed = weigh(every)
    graft = [Boundary(layer, 0.2 if layer < 4 else 0.01) for layer in range(num_layers + 1)]
    return Modules(2, 40, "float32", suspects(weighed), kinds_off(weighed), weighed, graft)


def timeline_for(replay: Replay, *, updated_at: int, engine: int = 0) -> dict[str, pa.Table]:
    """A timeline of as many steps as the tokens have, with new weights from one step on and stale hits in it."""
    steps = np.arange(int(pc.max(replay.tokens.column("engine_step")).as_py()) + 1)
    size, same = steps.size, np.full(steps.size, engine)
    version = (steps >= updated_at).astype(int)
    columns = {"engine": same, "engine_step": steps, "weight_version": version, "kv_usage": np.full(size, 0.25)}
    columns |= {"num_requests": np.full(size, 16), "num_waiting": (steps < 3) * 4}
    columns |= {"time_ns": steps * 10**7, "output_ns": steps * 10**7 + 10**6}
    columns |= {"num_prefill": (steps == 0) * 96, "num_decode": (steps > 0) * 16, "num_chunks": (steps == 0) * 1}
    columns |= {"num_preempted": (steps == 5) * 2}
    hit = {"engine": [engine] * 2, "engine_step": [1, updated_at], "request": [1, 2], "min_weight_version": [0, 0]}
    hit |= {"max_weight_version": [0, 0], "num_blocks": [3, 5], "num_tokens": [48, 80]}
    event = {"engine": [engine] * 2, "engine_step": [updated_at] * 2, "begin_ns": [10, 20], "end_ns": [20, 30]}
    event |= {"kind": ["weights", "label"], "weight_version": [1, 1], "text": ["reload_weights", "step-1"]}
    spans = {"engine": [engine] * 2, "request": [0] * 2, "kind": [0, 1], "begin_ns": [0, 10], "end_ns": [10, 30]}
    spans |= {name: [0, 0] for name in ("first_step", "last_step", "num_tokens", "num_computed")}
    return {"steps": pa.table(columns), "hits": pa.table(hit), "events": pa.table(event), "spans": pa.table(spans)}
