"""Times of one engine's monotonic clock go forward."""

import numpy as np

from tracekit.audit.findings import Array, Columns, Finding, finding
from tracekit.audit.rows import EngineRows

__all__ = ["clock"]


def clock(rows: EngineRows) -> list[Finding]:
    """Steps, requests, finishes and weight changes follow each other in time as they do in number."""
    steps, requests, done = rows["steps"], rows["requests"], rows["finishes"]
    found = [
        *_forward(rows, "steps", "time_ns", "dispatched"),
        *_forward(rows, "steps", "output_ns", "returned"),
        *_forward(rows, "requests", "time_ns", "admitted"),
        *_forward(rows, "weights", "begin_ns", "changed"),
        *finding(
            "time-of-output",
            rows.engine,
            steps["output_ns"] < steps["time_ns"],
            steps,
            lambda _: "its output came before it was dispatched",
        ),
    ]
    admitted = _admitted(rows, done)
    found += finding(
        "time-of-finish", rows.engine, done["time_ns"] < admitted, done, lambda _: "finished before it was admitted"
    )
    began = rows.about.get("mono_ns")
    if began is not None:
        found += finding(
            "time-before-engine",
            rows.engine,
            requests["time_ns"] < began,
            requests,
            lambda _: "admitted before the engine was there",
        )
    return found + _scheduled(rows)


def _scheduled(rows: EngineRows) -> list[Finding]:
    steps, scheduled = rows["steps"], rows["scheduled"]
    number = steps["engine_step"]
    if not number.size:
        return []
    at = np.minimum(np.searchsorted(number, scheduled["engine_step"]), number.size - 1)
    early = (number[at] == scheduled["engine_step"]) & (steps["time_ns"][at] < _admitted(rows, scheduled))
    return finding("time-of-admission", rows.engine, early, scheduled, lambda _: "scheduled before it was admitted")


def _admitted(rows: EngineRows, columns: Columns) -> Array:
    """When the request of each row was admitted; the smallest number where that is not recorded."""
    at, times = rows.row_of(columns["request"]), rows["requests"]["time_ns"]
    return np.where(at < 0, np.iinfo(np.int64).min, times[at] if times.size else 0)


def _forward(rows: EngineRows, table: str, column: str, what: str) -> list[Finding]:
    columns = rows.changes if table == "weights" else rows[table]
    times = columns[column]
    back = np.r_[False, times[1:] < times[:-1]] if times.size else times.astype(bool)
    return finding("time-backwards", rows.engine, back, columns, lambda _: f"{what} before the {table} row before it")
