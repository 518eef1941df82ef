"""What every command says of a trace that holds nothing to judge."""

from __future__ import annotations


def nothing(lacks: str) -> str:
    """Return the sentence; `lacks` says what the trace does not have, see `trace.lacking`."""
    return f"NOTHING TO JUDGE: {lacks}"
