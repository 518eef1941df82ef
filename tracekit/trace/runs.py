"""Runs of stored batches, and what an engine's counters say at both ends of each. Numbers in, numbers out."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tracekit.trace.batch import BatchMeta


@dataclass(frozen=True)
class Run:
    """Batches of one engine that are stored without a gap.

    Example:
        Run(first=7, last=9, before={"tokens": 90}, produced={"tokens": 120}, lost={}, goodbye=False)
    """

    first: int
    last: int
    before: dict[str, int]  # rows by table that the engine had produced before it, what was dropped in front included
    produced: dict[str, int]  # as of its last batch
    lost: dict[str, int]
    goodbye: bool = False

    @classmethod
    def of(cls, meta: BatchMeta) -> Run:
        """Return the run of one hot batch."""
        before = Counter(meta.produced)
        before.subtract(meta.rows)
        return cls(meta.first, meta.seq, dict(+before), dict(meta.produced), dict(meta.lost), meta.last)

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Run:
        """Read what `vars` gave, out of JSON.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        run = cls(**facts)
        numbers = (run.first, run.last)
        counts = (run.before, run.produced, run.lost)
        if not all(is_count(number) for number in numbers) or not 1 <= run.first <= run.last:
            raise ValueError("a run is not one of numbers from 1")
        if not all(is_counts(found) for found in counts) or not isinstance(run.goodbye, bool):
            raise ValueError("counters are not counts by table")
        return run

    @property
    def inside(self) -> Counter[str]:
        """Rows by table between its ends."""
        rows = Counter(self.produced)
        rows.subtract(self.before)
        return +rows


MAX_COUNT = (1 << 63) - 1
MAX_NAMES = 64


def is_count(value: object) -> bool:
    """Say whether a value out of JSON can count something that was really there."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_COUNT


def is_counts(value: object) -> bool:
    """Say whether a value out of JSON is a table's name to a count."""
    return (
        isinstance(value, dict)
        and len(value) <= MAX_NAMES
        and all(isinstance(name, str) and len(name) <= 64 and is_count(count) for name, count in value.items())
    )


def joined(runs: Iterable[Run]) -> list[Run]:
    """Return runs in order, those that touch or overlap made one."""
    found: list[Run] = []
    for run in sorted(runs, key=lambda run: (run.first, -run.last)):
        before = found[-1] if found else None
        if before is None or run.first > before.last + 1:
            found.append(run)
        elif run.last > before.last:
            produced, lost = (dict(Counter(a) | Counter(b)) for a, b in ((before.produced, run.produced),
                                                                         (before.lost, run.lost)))  # fmt: skip
            found[-1] = Run(before.first, run.last, before.before, produced, lost, before.goodbye or run.goodbye)
    return found


def touched(runs: Iterable[Run], first: int, last: int) -> bool:
    """Say whether any of these numbers is in one of the runs."""
    return any(run.first <= last and first <= run.last for run in runs)


class Taken:
    """Numbers that are taken by one batch each."""

    def __init__(self) -> None:
        self._ends: list[tuple[int, int]] = []  # last and first, ascending, not overlapping

    def take(self, first: int, last: int) -> bool:
        """Take a run of numbers; False, and nothing is taken, where any of them is taken."""
        at = bisect.bisect_left(self._ends, (first, 0))
        if at < len(self._ends) and self._ends[at][1] <= last:
            return False
        self._ends.insert(at, (last, first))
        return True


def holes(runs: Iterable[Run]) -> list[tuple[int, int, Counter[str]]]:
    """Return the numbers that are missing in front of and between joined runs, and the rows by table in each gap."""
    found = []
    end, produced = 0, Counter[str]()
    for run in runs:
        if run.first > end + 1:
            rows = Counter(run.before)
            rows.subtract(produced)
            found.append((end + 1, run.first - 1, +rows))
        end, produced = run.last, produced | Counter(run.produced)
    return found
