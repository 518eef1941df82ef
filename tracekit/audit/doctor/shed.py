"""A request that was shed was left out as a whole."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.audit.findings import BREAKS_REPLAY, Broken, Check
from tracekit.audit.rows import EngineRows

_TABLES = ("requests", "tokens", "topk", "prompt_logprobs", "prompt_topk", "scheduled", "cache", "finishes")


def _has_rows(rows: EngineRows) -> Iterator[Broken]:
    shed = rows["shed"]["request"]
    for table in _TABLES if shed.size else ():
        columns = rows[table]
        where = np.isin(columns["request"], shed)
        yield Broken(where, columns, lambda _, table=table: f"{table} has a row of it, and it was shed")  # type: ignore[misc]


CHECKS = (
    Check(
        "shed-whole",
        BREAKS_REPLAY,
        "A request that was shed has no rows, else it would be taken for one that is there with a hole.",
        "Leave the request out, and report the trace with the version of tracekit.",
        _has_rows,
    ),
)
