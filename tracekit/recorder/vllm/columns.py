"""Rows of the trace's tables, collected as columns until they are sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from tracekit.tables import TABLES

Row = dict[str, Any]


class Columns:
    """The rows of all tables since they were last taken."""

    def __init__(self) -> None:
        self._rows: dict[str, dict[str, list[Any]]] = {}

    def num_tokens(self) -> int:
        """Token rows collected since the last `take`, those of prompts too."""
        tables = [self._rows[name] for name in ("tokens", "prompt_logprobs") if name in self._rows]
        return sum(len(columns["token_id"]) for columns in tables)

    def pending(self) -> dict[str, int]:
        """Rows by table collected since the last `take`."""
        # one that could not be finished has columns of several lengths: what its longest has is lost
        return {table: max(map(len, columns.values())) for table, columns in self._rows.items()}

    def take(self) -> dict[str, dict[str, Any]]:
        """Return the collected rows as columns and start anew; empty when there are none."""
        rows, self._rows = self._rows, {}
        return {table: {name: column(TABLES[table][name], v) for name, v in c.items()} for table, c in rows.items()}

    def _columns(self, table: str) -> dict[str, list[Any]]:
        columns = self._rows.get(table)
        if columns is None:
            columns = self._rows[table] = {name: [] for name in TABLES[table] if name != "engine"}
        return columns

    def _append(self, table: str, row: Row) -> None:
        for name, values in self._columns(table).items():
            # a nullable column may be left out
            values.append(row.get(name) if TABLES[table][name].endswith("?") else row[name])


def column(kind: str, values: Iterable[Any]) -> Any:
    """A column in the numpy form the wire takes: arrays for numbers, lists for text and lists, masked for nulls.

    Args:
        kind: a column type of `tracekit.tables`.
    """
    base = kind.rstrip("?")
    values = list(values)
    if base == "str" or base.startswith("list<"):
        return values
    if kind.endswith("?"):
        missing = [v is None for v in values]
        if any(missing):
            return np.ma.MaskedArray(np.array([0 if v is None else v for v in values], dtype=base), mask=missing)
    return np.array(values, dtype=base)
