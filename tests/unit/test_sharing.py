"""Tests that share a recording run in one process, where pytest-xdist has several."""

import pytest

from helpers.sharing import group_of


@pytest.mark.parametrize(
    ("test", "group"),
    [
        ("engine/test_features.py::test_it", "engine/test_features.py"),
        ("engine/test_features.py::test_it[v1]", "engine/test_features.py-v1"),
        ("engine/test_updates_in_flight.py::test_it[latest-sync]", "engine/test_updates_in_flight.py-latest"),
        ("engine/test_record_v0.py::test_it[cached-300-288]", "engine/test_record_v0.py"),
        ("engine/test_cache_v0.py::test_it", "engine/test_record_v0.py"),
    ],
)
def test_the_group_of_a_test(test: str, group: str) -> None:
    assert group_of(f"tests/{test}") == f"tests/{group}"
