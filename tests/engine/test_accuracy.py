"""`make accuracy SHORT=1`: the few recordings of a fixed seed are judged as well as they were when this was written."""

from __future__ import annotations

import pytest
from corpus.case import NONE, SHORT
from corpus.judging import mark
from corpus.making import make
from corpus.scoring import score
from corpus.table import CASES

pytestmark = pytest.mark.engine

# of the faults, how many have the right layer and the exact token; no clean recording may raise an alarm
LAYERS, TOKENS = 6, 6


def test_verdicts_are_as_right_as_they_were() -> None:
    cases = [case for case in CASES if case.use == SHORT]
    make(cases)
    said = score(cases)
    assert said.keys() == {case.name for case in cases}
    marks = {case.name: mark(case, said[case.name]) for case in cases}
    misses = {name: found.miss for name, found in marks.items() if found.miss}
    clean = [case.name for case in cases if case.truth.layer == NONE]
    assert not {name: misses[name] for name in clean if name in misses}
    faults = [marks[case.name] for case in cases if case.truth.layer != NONE]
    assert sum(found.layer for found in faults) >= LAYERS, misses
    assert sum(bool(found.exact) for found in faults) >= TOKENS, misses
