"""Rows are conserved: what an engine produced is stored or known to be lost."""

from tracekit.audit.findings import Finding, Violation
from tracekit.trace.ledger import Loss, Tally

__all__ = ["conserved"]


def conserved(tally: Tally, losses: list[Loss]) -> list[Finding]:
    """Compare the producer's own counters with the stored rows and all known losses, table by table.

    Args:
        losses: All losses of the trace, those found by `trace.loss.unreported` among them.
    """
    end_seq = tally.runs[-1][1] if tally.runs else 0
    wrong = []
    for table in sorted(set(tally.produced) | set(tally.stored)):
        if table == "losses":
            continue
        produced, stored = tally.produced[table], tally.stored[table]
        own = [loss for loss in losses if loss.engine == tally.engine and loss.from_seq <= end_seq]
        lost = sum(loss.rows.get(table, 0) for loss in own)
        if produced != stored + lost:
            wrong.append(Violation(f"{table}: produced {produced}, stored {stored}, lost {lost}"))
    return [Finding("rows-conserved", tally.engine, len(wrong), wrong)] if wrong else []
