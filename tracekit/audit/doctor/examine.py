"""All checks over a trace; findings that a known loss explains are set apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tracekit.audit.doctor import (
    annotated,
    cached,
    chains,
    client,
    client_checks,
    clock,
    counters,
    fingerprints,
    finishes,
    hits,
    prompts,
    shed,
    steps,
    tokens,
    topk,
    weights,
)
from tracekit.audit.doctor.pairs import Completion
from tracekit.audit.findings import Broken, Check, Finding, gather
from tracekit.audit.rows import EngineRows, read_engines
from tracekit.errors import EXIT_DATA_LOST, EXIT_FAILED, EXIT_OK
from tracekit.tables import TABLES
from tracekit.trace.lacking import lacking
from tracekit.trace.ledger import Loss, lost_tables
from tracekit.trace.reader import Trace

# those that look at one engine's rows
CHECKS: tuple[Check[Callable[[EngineRows], Iterator[Broken]]], ...] = (
    *tokens.CHECKS,
    *steps.CHECKS,
    *chains.CHECKS,
    *hits.CHECKS,
    *cached.CHECKS,
    *topk.CHECKS,
    *prompts.CHECKS,
    *weights.CHECKS,
    *fingerprints.CHECKS,
    *finishes.CHECKS,
    *clock.CHECKS,
    *shed.CHECKS,
)
ALL: tuple[Check[Any], ...] = (
    counters.CONSERVED,
    *CHECKS,
    *annotated.CHECKS,
    *client_checks.OF_FILE,
    *client_checks.CHECKS,
)


@dataclass(frozen=True)
class Report:
    """What `examine` found."""

    path: str
    counts: dict[str, int]  # rows looked at, by table
    completions: int | None  # of the client's view; None where none was given
    not_compared: list[str]  # of the client's view, what nobody can tell
    violations: list[Finding]
    excused: list[Finding]  # what rows that are known to be lost explain
    losses: list[Loss]
    notes: list[str]  # on engines that never said goodbye, and lost nothing by it, and on what trainers said
    lacks: str | None  # what the trace must have to be judged, see `trace.lacking`

    @property
    def exit_code(self) -> int:
        """1 where the trace contradicts itself or holds nothing to judge, 3 where rows are known to be lost, else 0."""
        if self.violations or self.lacks:
            return EXIT_FAILED
        return EXIT_DATA_LOST if self.losses else EXIT_OK

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "path": self.path,
            "sound": not self.violations and not self.lacks,
            "lacks": self.lacks,
            "complete": not self.losses,
            "rows": self.counts,
            "completions": self.completions,
            "not_compared": self.not_compared,
            "violations": [found.to_dict() for found in self.violations],
            "excused": [found.to_dict() for found in self.excused],
            "losses": [loss.to_dict() for loss in self.losses],
            "notes": self.notes,
        }


def examine(
    trace: Trace, view: Sequence[Completion] | None = None, engines: Sequence[EngineRows] | None = None
) -> Report:
    """Prove a trace against itself, and against what the client received where `view` is given.

    Args:
        trace: with all its tables.
        view: what the client received.
        engines: the rows of the trace, where they were read before.

    Raises:
        TraceCorruptError: a batch is not what was written.
    """
    losses = trace.all_losses()
    violations = [found for tally in trace.tallies.values() for found in counters.conserved(tally, losses)]
    engines = list(read_engines(trace)) if engines is None else engines
    found = [one for rows in engines for check in CHECKS for one in gather(check, rows.engine, check.find(rows))]
    of_trainers, notes = annotated.check(trace, engines)
    found += of_trainers
    seen = client.ClientView([], []) if view is None else client.client_view(engines, view)
    found += seen.findings
    missing = {rows.engine: lost_tables(losses, rows.engine) for rows in engines}
    excused = [one for one in found if one.check.needs & missing.get(one.engine, set())]
    violations += [one for one in found if one not in excused]
    counts = {name: trace.rows(name) for name in TABLES if name != "losses"}
    completions = None if view is None else len(view)
    told = (losses, [*trace.notes(), *notes], lacking(trace))
    return Report(trace.path, counts, completions, seen.not_compared, violations, excused, *told)
