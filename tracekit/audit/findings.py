"""What a check finds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["MAX_EXAMPLES", "Array", "Columns", "Finding", "Violation", "finding"]

Array = npt.NDArray[Any]
Columns = dict[str, Array]

MAX_EXAMPLES = 100  # named one by one; the rest of a finding is counted


@dataclass(frozen=True)
class Violation:
    """One row, or one pair of rows, that contradicts the rest of the trace."""

    text: str
    request: int | None = None
    engine_step: int | None = None


@dataclass(frozen=True)
class Finding:
    """All violations of one kind in one engine."""

    check: str
    engine: int
    count: int
    examples: list[Violation] = field(default_factory=list)


def finding(
    check: str, engine: int, broken: Array, rows: Columns, text: Callable[[int], str], steps: str = "engine_step"
) -> list[Finding]:
    """Return the finding for the rows where ``broken`` is true; nothing where none is.

    Args:
        broken: bool [N].
        rows: Columns of length N; ``request`` and the column named by ``steps`` name the place where they are there.
        text: Says what is wrong with row i.
    """
    at = np.flatnonzero(broken)
    if not at.size:
        return []
    examples = [Violation(text(int(i)), _at(rows, "request", i), _at(rows, steps, i)) for i in at[:MAX_EXAMPLES]]
    return [Finding(check, engine, int(at.size), examples)]


def _at(rows: Columns, name: str, i: Any) -> int | None:
    return int(rows[name][i]) if name in rows else None
