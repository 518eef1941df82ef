"""Numbers for weights: a version's, or, for an engine whose versions are not those of the others, one of its own."""

from __future__ import annotations

OWN = 1 << 20  # an engine's own numbers start at a multiple of this


def number_of(engine: int, version: int) -> int:
    """Return the number of weights that are an engine's own."""
    return (engine + 1) * OWN + version


def version_of(number: int) -> int:
    """Return the version that a number stands for."""
    return number % OWN


def engine_of(number: int) -> int | None:
    """Return the engine whose own weights these are; None where all engines have them."""
    return number // OWN - 1 if number >= OWN else None


def name_of(number: int) -> str:
    """Return how a caller names these weights: `VERSION`, or `ENGINE:VERSION`."""
    engine = engine_of(number)
    return str(number) if engine is None else f"{engine}:{version_of(number)}"
