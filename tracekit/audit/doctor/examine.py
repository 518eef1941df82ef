"""All checks over a trace; violations that a known loss explains are set apart."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tracekit.audit.doctor import (
    cached,
    chains,
    clock,
    fingerprints,
    finishes,
    hits,
    steps,
    tokens,
    topk,
    weights,
)
from tracekit.audit.doctor.client import Completion, client_view
from tracekit.audit.doctor.counters import conserved
from tracekit.audit.findings import Finding
from tracekit.audit.rows import EngineRows, read_engines
from tracekit.errors import EXIT_DATA_LOST, EXIT_FAILED, EXIT_OK
from tracekit.tables import TABLES
from tracekit.trace.ledger import Loss
from tracekit.trace.reader import Trace

__all__ = ["CHECKS", "Report", "examine"]

Check = Callable[[EngineRows], list[Finding]]

# each check, and the tables that must be whole for it to mean anything
CHECKS: tuple[tuple[Check, frozenset[str]], ...] = (
    (tokens.references, frozenset({"requests"})),
    (tokens.positions, frozenset({"requests", "tokens"})),
    (tokens.logprobs, frozenset()),
    (tokens.both_logprobs, frozenset()),
    (tokens.token_ids, frozenset()),
    (steps.numbering, frozenset({"steps"})),
    (steps.accounting, frozenset({"steps", "scheduled"})),
    (steps.sampling, frozenset({"tokens", "scheduled"})),
    (chains.computed, frozenset({"scheduled"})),
    (chains.flagged, frozenset({"requests", "scheduled", "control"})),
    (chains.sampled_positions, frozenset({"tokens", "scheduled"})),
    (hits.possible, frozenset({"requests"})),
    (hits.explained, frozenset({"requests", "tokens", "scheduled"})),
    (cached.covered, frozenset({"scheduled", "cache"})),
    (cached.versions, frozenset()),
    (topk.complete, frozenset({"requests", "tokens", "topk"})),
    (topk.ranked, frozenset({"tokens"})),
    (weights.announced, frozenset({"weights"})),
    (weights.of_tokens, frozenset()),
    (fingerprints.fingerprints, frozenset({"weights", "fingerprints"})),
    (finishes.finishes, frozenset({"tokens", "finishes"})),
    (clock.clock, frozenset()),
)
CLIENT_NEEDS = frozenset({"requests", "tokens", "finishes"})


@dataclass(frozen=True)
class Report:
    """What `examine` found."""

    path: str
    counts: dict[str, int]  # rows looked at, by table
    completions: int | None  # of the client's view; None where none was given
    violations: list[Finding]
    excused: list[Finding]  # what rows that are known to be lost explain
    losses: list[Loss]

    @property
    def exit_code(self) -> int:
        """1 where the trace contradicts itself, 3 where rows are known to be lost, else 0."""
        if self.violations:
            return EXIT_FAILED
        return EXIT_DATA_LOST if self.losses else EXIT_OK

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        return {
            "path": self.path,
            "sound": not self.violations,
            "complete": not self.losses,
            "rows": self.counts,
            "completions": self.completions,
            "violations": [_as_dict(found) for found in self.violations],
            "excused": [_as_dict(found) for found in self.excused],
            "losses": [dict(vars(loss)) for loss in self.losses],
        }


def examine(trace: Trace, view: Sequence[Completion] | None = None) -> Report:
    """Prove a trace against itself, and against what the client received where ``view`` is given.

    Raises:
        TraceCorruptError: a batch is not what was written.
    """
    losses = trace.all_losses()
    violations: list[Finding] = []
    excused: list[Finding] = []
    for tally in trace.tallies.values():
        violations += conserved(tally, losses)
    engines = list(read_engines(trace))
    for rows in engines:
        missing = lost_tables(losses, rows.engine)
        for check, needs in CHECKS:
            (excused if missing & needs else violations).extend(check(rows))
    if view is not None:
        for found in client_view(engines, view):
            (excused if lost_tables(losses, found.engine) & CLIENT_NEEDS else violations).append(found)
    counts = {name: trace.rows(name) for name in TABLES if name != "losses"}
    return Report(trace.path, counts, None if view is None else len(view), violations, excused, losses)


def lost_tables(losses: Sequence[Loss], engine: int) -> set[str]:
    """Tables of an engine that have lost rows; all of them where nobody knows which."""
    found: set[str] = set()
    for loss in losses:
        if loss.engine in (None, engine):
            found |= set(loss.rows) or set(TABLES)
    return found


def _as_dict(found: Finding) -> dict[str, Any]:
    examples = [dict(vars(violation)) for violation in found.examples]
    return {"check": found.check, "engine": found.engine, "count": found.count, "examples": examples}
