"""What doctor and lint found that a cause rests on."""

from __future__ import annotations

from tracekit.diagnose.evidence import Evidence


def cited(evidence: Evidence, *ids: str) -> list[str]:
    """Return "source: id" of each of these findings that the trace has."""
    found = {(noted.source, noted.id) for noted in evidence.facts.noted if noted.id in ids}
    return [f"{source}: {name}" for source, name in sorted(found)]
