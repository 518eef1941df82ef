"""What engines answered to a label of their weights, as text."""

from __future__ import annotations


def mark_line(engine: int, weight_version: int, engine_step: int, error: str | None) -> str:
    """Return the line about one engine; `error` is None where it confirmed."""
    return f"engine {engine}  {error or f'weight version {weight_version} from engine step {engine_step}'}"
