"""replay.arrow: every scored token with its replayed values, and the verdict in the schema's metadata."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tracekit import __version__
from tracekit.diagnose.plain import plain
from tracekit.trace.output import check_output, new_file

if TYPE_CHECKING:
    from tracekit.replay.runner import ReplayResult

__all__ = ["SCHEMA", "check_output", "replay_table", "write_replay"]

REPLAY_SCHEMA_VERSION = "1"

SCHEMA = pa.schema(
    [
        pa.field("engine", pa.uint32(), nullable=False),
        pa.field("request", pa.uint32(), nullable=False),
        pa.field("position", pa.uint32(), nullable=False),  # 0-based over prompt and completion
        pa.field("token_id", pa.uint32(), nullable=False),
        pa.field("rollout_logprob", pa.float32(), nullable=False),  # nats, as recorded; NaN where the engine said NaN
        pa.field("replay_raw_logprob", pa.float32(), nullable=False),
        pa.field("replay_processed_logprob", pa.float32(), nullable=False),  # -inf: outside the scorer's kept set
        pa.field("forced_logprob", pa.float32(), nullable=False),  # processed, the token forced into the kept set
        pa.field("kept_count", pa.uint32(), nullable=False),
        pa.field("sigma", pa.float32(), nullable=False),  # this run's noise of this token, nats
        pa.field("d", pa.float64(), nullable=False),  # replay − rollout, nats, of the semantic that was compared
        pa.field("beyond_noise", pa.bool_(), nullable=False),
        pa.field("weight_version", pa.uint32(), nullable=False),
        pa.field("engine_step", pa.uint32(), nullable=False),
    ]
)


def replay_table(result: ReplayResult) -> pa.Table:
    """Return one row per scored token, with the verdict as JSON in the metadata under ``tracekit.replay``."""
    run, judged = result.run, result.verdict.tokens
    engine = np.array([r.engine for r in run.rollouts])[run.rollout]
    request = np.array([r.request for r in run.rollouts])[run.rollout]
    columns = {
        "engine": engine,
        "request": request,
        "position": run.position,
        "token_id": run.token_id,
        "rollout_logprob": run.rollout_logprob,
        "replay_raw_logprob": run.scores.raw_logprob,
        "replay_processed_logprob": run.scores.processed_logprob,
        "forced_logprob": run.scores.forced_logprob,
        "kept_count": run.scores.kept_count,
        "sigma": judged.sigma,
        "d": judged.d,
        "beyond_noise": judged.beyond,
        "weight_version": run.weight_version,
        "engine_step": run.engine_step,
    }
    arrays = [pa.array(columns[f.name].astype(f.type.to_pandas_dtype()), f.type) for f in SCHEMA]
    metadata = {
        "tracekit.replay_schema": REPLAY_SCHEMA_VERSION,
        "tracekit.version": __version__,
        "tracekit.model": result.model,
        "tracekit.dtype": result.dtype,
        "tracekit.replay": json.dumps(plain(result.to_dict()), allow_nan=False),
    }
    return pa.Table.from_arrays(arrays, schema=SCHEMA.with_metadata(metadata))


def write_replay(result: ReplayResult, path: str | os.PathLike[str]) -> None:
    """Write a replay into a new Arrow IPC file, which appears whole or not at all.

    Raises:
        OutputError: the path exists or cannot be written. Call ``check_output`` before the scoring, too.
    """
    table = replay_table(result)
    with new_file(path) as file:
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 9))
        with pa.ipc.new_file(file, table.schema, options=options) as writer:
            writer.write_table(table)
