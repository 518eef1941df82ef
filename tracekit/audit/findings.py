"""What a check is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Columns = dict[str, Array]  # column -> values, all of one length
Find = TypeVar("Find", covariant=True)

BREAKS_REPLAY = "breaks replay"  # the tokens, logprobs or weights that replay compares are not what the engine had
MISLEADS = "misleads"  # they may be right, but what is said of their cause rests on a record that contradicts itself
SEVERITIES = (BREAKS_REPLAY, MISLEADS)

MAX_EXAMPLES = 100  # named one by one; the rest of a finding is counted


@dataclass(frozen=True)
class Check(Generic[Find]):
    """Something that always holds in a trace that is right."""

    id: str
    severity: str
    why: str  # one sentence: what must hold, and what is lost where it does not
    what_to_do: str  # one sentence
    find: Find  # what looks at the trace; its type says at what
    needs: frozenset[str] = frozenset()  # tables that must be whole for it to mean anything


@dataclass(frozen=True)
class Violation:
    """One row, or one pair of rows, that contradicts the rest of the trace."""

    text: str
    request: int | None = None
    engine_step: int | None = None


@dataclass(frozen=True)
class Broken:
    """The rows of a table that break a check."""

    where: Array  # bool [N]
    rows: Columns  # of length N; `request` and `engine_step` name the place where they are there
    text: Callable[[int], str]  # says what is wrong with row i


@dataclass(frozen=True)
class Finding:
    """All violations of one check in one engine."""

    check: Check[Any]
    engine: int
    count: int
    examples: list[Violation]

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON types."""
        return {
            "id": self.check.id,
            "severity": self.check.severity,
            "engine": self.engine,
            "count": self.count,
            "why": self.check.why,
            "what_to_do": self.check.what_to_do,
            "examples": [dict(vars(example)) for example in self.examples],
        }


def gather(check: Check[Any], engine: int, broken: Iterable[Broken]) -> list[Finding]:
    """Return the one finding of a check in an engine; nothing where no row is broken."""
    count = 0
    examples: list[Violation] = []
    for found in broken:
        at = np.flatnonzero(found.where)
        count += int(at.size)
        for i in at[: MAX_EXAMPLES - len(examples)].tolist():
            examples.append(Violation(found.text(i), _at(found.rows, "request", i), _at(found.rows, "engine_step", i)))
    return [Finding(check, engine, count, examples)] if count else []


def select(columns: Columns, keep: Array | slice) -> Columns:
    """Return the rows of a table where `keep` (bool [N], places, or a run of them) says so; not copied if all do."""
    if isinstance(keep, np.ndarray) and keep.dtype == bool and keep.all():
        return columns
    return {name: values[keep] for name, values in columns.items()}


def _at(rows: Columns, name: str, i: int) -> int | None:
    return int(rows[name][i]) if name in rows else None
