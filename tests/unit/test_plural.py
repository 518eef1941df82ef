"""One hit, two hits."""

from __future__ import annotations

import pytest

from tracekit.plural import plural


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 hits"), (1, "1 hit"), (2, "2 hits"), (1234, "1,234 hits")],
)
def test_a_noun_goes_with_its_count(count: int, text: str) -> None:
    assert plural(count, "hit") == text


def test_an_irregular_plural_is_given() -> None:
    assert [plural(count, "batch", "batches") for count in (1, 2)] == ["1 batch", "2 batches"]
