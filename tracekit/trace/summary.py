"""What a trace holds, in numbers: read a piece at a time, so that its size does not matter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from tracekit.tables import TABLES
from tracekit.trace.batch import rows_of
from tracekit.trace.lacking import lacking
from tracekit.trace.reader import Trace

_ENGINE_FACTS = (
    *("engine", "engine_id", "run", "kind", "engine_version", "recorder_version"),
    *("model", "logprobs_mode", "host", "rank"),
)


def summarize(trace: Trace) -> dict[str, Any]:
    """Return the facts that `tracekit info` prints, ready for JSON.

    Every table is read and verified, so that "nothing was lost" is not said of damaged rows.

    Raises:
        TraceCorruptError: a batch is not what was written.
    """
    rows = {name: trace.rows(name) for name in TABLES}
    per_engine = {number: {"requests": 0, "tokens": 0} for number in trace.numbers}
    for stored, number in trace.stored:
        for name in ("requests", "tokens") if number in per_engine else ():
            per_engine[number][name] += stored.meta.rows.get(name, 0)
    positions: list[int] = []
    versions: set[int] = set()
    for batch in trace.batches():
        tokens = rows_of(batch, "tokens")
        if len(tokens):
            bounds = pc.min_max(tokens.field("position")).as_py()
            positions = [min([bounds["min"], *positions]), max([bounds["max"], *positions])]
            versions.update(pc.unique(tokens.field("weight_version")).to_pylist())
    size = sum(_size(path) for path in trace.files)
    losses = trace.losses()
    return {
        "path": trace.path,
        "form": trace.form,
        "live": trace.live,
        "schema_version": trace.schema_version,
        "bytes": size,
        "bytes_per_token": round(size / rows["tokens"], 3) if rows["tokens"] else None,
        "rows": {**rows, "losses": len(losses)},
        "positions": positions or None,
        "weight_versions": sorted(versions),
        "engines": [
            {key: engine[key] for key in _ENGINE_FACTS if key in engine}
            | per_engine[engine["engine"]]
            | {"ended": trace.tallies[engine["engine"]].last}
            for engine in trace.engines()
        ],
        "lacks": lacking(trace),
        "complete": not losses,
        "losses": losses,
        "notes": trace.notes(),
    }


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # the daemon has put it into another file meanwhile
        return 0
