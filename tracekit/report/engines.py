"""Engine environments as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tracekit.report.grid import grid

COLUMNS = ("name", "vllm", "variant", "state", "recorder", "path")


def engine_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table with one line per environment of `list_envs`."""
    return grid([COLUMNS, *(tuple(str(row[column] or "-") for column in COLUMNS) for row in rows)])


def installed_line(name: str, vllm_version: str, variant: str, python: object) -> str:
    """Return the line about an environment that can be used."""
    return f"{name}: vLLM {vllm_version} ({variant}) {python}"
