"""A file of any bytes gives rows that were written, or a sentence; `scripts/fuzz_trace.py` looks for more by branches.

The corpus has a sealed file and a segment to begin with, and whatever was found to break a reader.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.damaged import outcome, samples

CORPUS = sorted((Path(__file__).parents[1] / "golden" / "traces").iterdir())
HONEST = [path.read_bytes() for path in CORPUS if path.name in ("sealed", "segment")]


def test_what_is_whole_is_read_whole(tmp_path: Path) -> None:
    made = samples(tmp_path / "made")
    for data in (*HONEST, *made.values()):
        assert "complete" in outcome(data, tmp_path)
    assert len(HONEST) == len(made) == 2


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
def test_what_was_found_once_stays_found(path: Path, tmp_path: Path) -> None:
    outcome(path.read_bytes(), tmp_path)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(HONEST), st.integers(0, 1 << 16), st.binary(max_size=8), st.integers(0, 64))
def test_a_damaged_file_gives_what_was_written_or_a_sentence(
    tmp_path: Path, data: bytes, place: int, put: bytes, cut: int
) -> None:
    place %= len(data)
    outcome(data[:place] + put + data[place + cut :], tmp_path)
