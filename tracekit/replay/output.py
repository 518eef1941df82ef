"""replay.arrow: every scored token with its replayed values; the result and the timeline in the schema's metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from tracekit.diagnose.data import Run, Strata
from tracekit.diagnose.noise import TokenNoise
from tracekit.diagnose.parts import Parts, token_parts
from tracekit.diagnose.reran import COMPOSED
from tracekit.diagnose.result import Result
from tracekit.errors import NotATraceError, SchemaTooNewError, UnreadableTraceError
from tracekit.replay.timeline import from_metadata, to_metadata
from tracekit.trace.durable import open_regular
from tracekit.trace.output import new_file
from tracekit.trace.schema import VERSION_KEY

_RESULT = b"tracekit.result"

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
        pa.field("vocab_rank", pa.uint32(), nullable=False),  # the engine's, 1 = its most likely; 0: not known
        pa.field("batch_size", pa.int32(), nullable=False),  # requests in its engine step; here and below -1: not known
        pa.field("num_cached", pa.int32(), nullable=False),  # tokens of KV that its request found computed
        pa.field(
            "cached_version", pa.int32(), nullable=False
        ),  # oldest weight version that computed these; -1: none, too
    ]
)


@dataclass(frozen=True)
class Replay:
    """What a replay found: the result, and every scored token with its replayed values.

    Attributes:
        result: verdict, codes and numbers; `to_dict()` is its JSON.
        tokens: one row for each scored token, columns as in `SCHEMA`, in order of (engine, request, position).
        timeline: what the engines did meanwhile, as `tracekit.replay.timeline` says; empty where nobody looked.
    """

    result: Result
    tokens: pa.Table
    timeline: Mapping[str, pa.Table] = field(default_factory=dict)


def token_table(run: Run, noise: TokenNoise, parts: Parts | None = None) -> pa.Table:
    """Return the tokens of a judged run.

    Args:
        run: the tokens and their scores.
        noise: what the verdict made of each.
        parts: of the verdict; where the engine ran again, `rerun_logprob` and one column `part_…` for each part, NaN
            where a token has it not, are added to those of `SCHEMA`.
    """
    unknown = np.full(run.token_id.size, -1, dtype=np.int64)
    strata = run.strata or Strata(*[unknown] * 6)
    columns = {
        "engine": np.array([r.engine for r in run.rollouts])[run.rollout],
        "request": np.array([r.request for r in run.rollouts])[run.rollout],
        "position": run.position,
        "token_id": run.token_id,
        "rollout_logprob": run.rollout_logprob,
        "replay_raw_logprob": run.trainer.raw_logprob,
        "replay_processed_logprob": run.trainer.processed_logprob,
        "forced_logprob": run.trainer.forced_logprob,
        "kept_count": run.trainer.kept_count,
        "sigma": noise.sigma,
        "d": noise.d,
        "beyond_noise": noise.beyond,
        "weight_version": run.weight_version,
        "engine_step": run.engine_step,
        "vocab_rank": run.rank,
        "batch_size": strata.batch_size,
        "num_cached": strata.num_cached,
        "cached_version": strata.oldest_found,
    }
    arrays = [pa.array(columns[f.name].astype(f.type.to_pandas_dtype()), f.type) for f in SCHEMA]
    table = pa.Table.from_arrays(arrays, schema=SCHEMA)
    if parts is None or run.reran is None:
        return table
    more = {"rerun_logprob": run.reran.values[COMPOSED]} if COMPOSED in run.reran.values else {}
    more |= {f"part_{name}": values for name, values in token_parts(run, parts.lens).items()}
    for name, values in more.items():
        table = table.append_column(pa.field(name, pa.float64(), nullable=False), pa.array(values))
    return table


def write_replay(replay: Replay, path: str | os.PathLike[str]) -> None:
    """Write a replay into a new Arrow IPC file, which appears whole or not at all.

    Raises:
        OutputError: the path exists or cannot be written. Call `trace.output.check_output` before the scoring, too.
    """
    result = json.dumps(replay.result.to_dict(), allow_nan=False)
    table = replay.tokens.replace_schema_metadata({_RESULT: result, **to_metadata(replay.timeline)})
    with new_file(path) as file:
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", 9))
        with pa.ipc.new_file(file, table.schema, options=options) as writer:
            writer.write_table(table)


def read_replay(path: str | os.PathLike[str]) -> Replay:
    """Read what `tracekit replay -o` wrote.

    Raises:
        NotATraceError: it is not a file that replay wrote.
        SchemaTooNewError: another version of tracekit wrote it, whose results are not those of this one.
        OSError: there is no such file, or it is a pipe or a device, which may have no end.

    Example:
        found = tracekit.read_replay("replay.arrow")
        found.result.verdict.layer == "semantic"
        found.tokens.column("d")
    """
    _check_regular(path)
    try:
        with pa.OSFile(os.fspath(path)) as file:
            table = pa.ipc.open_file(file).read_all()
    except pa.ArrowInvalid as error:
        raise NotATraceError(f"this is not an Arrow file that replay wrote, nor its JSON: {path}") from error
    metadata = table.schema.metadata or {}
    stored = metadata.get(_RESULT)
    if stored is None:
        hint = " (it is a trace: `tracekit replay TRACE -o FILE` makes one)" if VERSION_KEY in metadata else ""
        raise NotATraceError(f"this Arrow file holds no result of a replay{hint}: {path}")
    return Replay(_result(stored, path), table.replace_schema_metadata(None), from_metadata(metadata))


def read_result(path: str | os.PathLike[str]) -> Result:
    """Read the result alone, of what `tracekit replay -o` wrote or `tracekit replay --json` printed.

    Raises:
        UnreadableTraceError: the system does not let us read it.
        NotATraceError, SchemaTooNewError: as `read_replay`.
    """
    try:
        _check_regular(path)
        with open(path, "rb") as file:
            head = file.read(1)
            return _result(head + file.read(), path) if head == b"{" else read_replay(path).result
    except OSError as error:
        raise UnreadableTraceError(os.fspath(path), error) from None


def _check_regular(path: str | os.PathLike[str]) -> None:
    os.close(open_regular(Path(os.path.realpath(path))))


def _result(stored: bytes, path: str | os.PathLike[str]) -> Result:
    try:
        values = json.loads(stored)
    except (ValueError, RecursionError) as error:
        raise NotATraceError(f"this is not the JSON of a replay: {path}") from error
    try:
        return Result.from_dict(values)
    except ValueError as error:
        raise SchemaTooNewError(f"{error}: {path}") from error
    except KeyError as error:
        raise NotATraceError(f"the result in this file lacks {error}: {path}") from error
    except TypeError as error:
        raise NotATraceError(f"the result in this file is not one of a replay: {path}") from error
