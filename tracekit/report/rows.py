"""Rows of a table as JSON lines or CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any


def json_line(row: Mapping[str, Any]) -> str:
    """Return a row as one JSON object; a float that is not a finite number is a string, which JSON can hold."""
    return json.dumps({name: _plain(value) for name, value in row.items()}, ensure_ascii=False)


def csv_line(cells: Iterable[Any]) -> str:
    """Return cells as one line of CSV; lists are JSON, null is empty."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(
        [json.dumps(_plain(cell)) if isinstance(cell, list) else cell for cell in cells]
    )
    return line.getvalue()


def no_rows(table: str) -> str:
    """Return the line about a table that is empty."""
    return f"tracekit: the trace has no rows in {table}"


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
