"""Counts with their noun, as every reporter prints them."""

from __future__ import annotations


def plural(count: int, noun: str, several: str | None = None) -> str:
    """Return a count and its noun in the form that goes with it.

    Args:
        count: how many.
        noun: the word for one.
        several: the word for any other number, where it is not the word for one with an s.

    Example:
        plural(1, "hit") == "1 hit"
        plural(1234, "hit") == "1,234 hits"
        plural(2, "batch", "batches") == "2 batches"
    """
    return f"{count:,} {noun if count == 1 else several or noun + 's'}"
