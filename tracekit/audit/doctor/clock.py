"""Times of one engine's monotonic clock go forward."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.audit.findings import MISLEADS, Array, Broken, Check
from tracekit.audit.rows import EngineRows
from tracekit.join import pick

_EARLIEST = np.iinfo(np.int64).min


def _backwards(rows: EngineRows) -> Iterator[Broken]:
    for table, columns, column, what in (
        ("steps", rows["steps"], "time_ns", "dispatched"),
        ("steps", rows["steps"], "output_ns", "returned"),
        ("requests", rows["requests"], "time_ns", "admitted"),
        ("weights", rows.changes, "begin_ns", "changed"),
    ):
        times, text = columns[column], f"{what} before the {table} row before it"
        back = np.r_[False, times[1:] < times[:-1]][: times.size]
        yield Broken(back, columns, lambda _, text=text: text)  # type: ignore[misc]


def _output(rows: EngineRows) -> Iterator[Broken]:
    steps = rows["steps"]
    early = steps["output_ns"] < steps["time_ns"]
    yield Broken(early, steps, lambda _: "its output came before it was dispatched")


def _finish(rows: EngineRows) -> Iterator[Broken]:
    done = rows["finishes"]
    early = done["time_ns"] < _admitted(rows, done["request"])
    yield Broken(early, done, lambda _: "finished before it was admitted")


def _before_engine(rows: EngineRows) -> Iterator[Broken]:
    requests, began = rows["requests"], rows.about.get("mono_ns", _EARLIEST)
    yield Broken(requests["time_ns"] < began, requests, lambda _: "admitted before the engine was there")


def _admission(rows: EngineRows) -> Iterator[Broken]:
    scheduled = rows["scheduled"]
    admitted = _admitted(rows, scheduled["request"])
    time = pick(rows["steps"]["time_ns"], rows.step_of(scheduled["engine_step"]), admitted)
    yield Broken(time < admitted, scheduled, lambda _: "scheduled before it was admitted")


def _admitted(rows: EngineRows, request: Array) -> Array:
    """When each request was admitted; before anything else where that is not recorded."""
    return pick(rows["requests"]["time_ns"], rows.row_of(request), _EARLIEST)


_REPORT = "Do not trust the times of this trace, and report it with the version of vLLM."

CHECKS = (
    Check(
        "time-backwards",
        MISLEADS,
        "Steps, requests and weight changes follow each other in time as they do in number.",
        _REPORT,
        _backwards,
    ),
    Check(
        "time-of-output",
        MISLEADS,
        "The output of a step comes after the step was dispatched.",
        _REPORT,
        _output,
    ),
    Check(
        "time-of-finish",
        MISLEADS,
        "A request finishes after it was admitted.",
        _REPORT,
        _finish,
    ),
    Check(
        "time-before-engine",
        MISLEADS,
        "A request is admitted after its engine was there, else the two were measured by different clocks.",
        _REPORT,
        _before_engine,
    ),
    Check(
        "time-of-admission",
        MISLEADS,
        "A request is scheduled after it was admitted.",
        _REPORT,
        _admission,
    ),
)
