"""Rows are conserved: what an engine produced is stored or known to be lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tracekit.audit.findings import BREAKS_REPLAY, Check, Finding, Violation
from tracekit.trace.ledger import Loss, balance
from tracekit.trace.tally import Tally


def _unbalanced(tally: Tally, losses: Sequence[Loss]) -> list[str]:
    """Say of each table that the producer's own counters, the stored rows and all known losses do not agree."""
    return [
        f"{table}: produced {produced}, stored {stored}, lost {lost}"
        for table, (produced, stored, lost) in sorted(balance(tally, losses).items())
        if produced != stored + lost
    ]


CONSERVED: Check[Callable[[Tally, Sequence[Loss]], list[str]]] = Check(
    "rows-conserved",
    BREAKS_REPLAY,
    "What an engine produced is stored or known to be lost, else rows are there twice or losses are invented.",
    "Do not rely on what this trace says is missing, and report it: the engine's counters and its batches disagree.",
    _unbalanced,
)


def conserved(tally: Tally, losses: Sequence[Loss]) -> list[Finding]:
    """Compare the counters of one engine with its rows, table by table.

    Args:
        tally: the engine.
        losses: all losses of the trace, those found by `trace.ledger.unreported` among them.
    """
    texts = CONSERVED.find(tally, losses)
    return [Finding(CONSERVED, tally.engine, len(texts), [Violation(text) for text in texts])] if texts else []
