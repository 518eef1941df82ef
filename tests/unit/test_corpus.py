"""The corpus counts what it says: rows, marks, intervals."""

from __future__ import annotations

from typing import Any

import pytest
from corpus.case import NONE, PATH, REPORT, TUNE, Case, Truth
from corpus.judging import mark, wilson
from corpus.page import page
from corpus.table import CASES

SINCE = {"output_index": 9}


def said(layer: str, *codes: str, **fields: Any) -> dict[str, Any]:
    causes = [{"code": code, "names": ["model.layers.3.mlp"]} for code in codes]
    found = {"layer": layer, "cause": "unexplained", "causes": causes, "since": SINCE, "withheld": [], "exit_code": 4}
    return {**found, "d_abs_mean": 0.1, "secs": 1.0, "cpu_secs": 1.0, **fields}


def case(name: str = "a", kind: str = "module", **truth: Any) -> Case:
    return Case(name, kind, "v1-fp32", Truth(**{"layer": PATH, "causes": ("module",), "first": 10, **truth}))


def test_there_are_as_many_rows_as_the_page_needs() -> None:
    report = [row for row in CASES if row.use == REPORT]
    clean = [row for row in report if row.truth.layer == NONE and not row.truth.refused]
    assert len(report) - len(clean) >= 80 and len(clean) >= 60
    assert sum(row.kind == "composite" for row in report) >= 6
    reports = {name for row in report for name in row.source.split(", ") if name and row.truth.layer != NONE}
    assert len(reports) >= 14


def test_rows_for_tuning_and_rows_for_reporting_share_no_seed() -> None:
    seeds = [{row.seed for row in CASES if row.use == use} for use in (TUNE, REPORT)]
    assert not set.intersection(*seeds)


def test_a_verdict_is_marked_part_by_part() -> None:
    found = mark(case(module="layers.3.mlp"), said(PATH, "module"))
    assert (found.layer, found.cause, found.exact, found.near, found.module) == (True, True, False, True, True)
    assert found.miss == "inference path: module, token 9"
    assert mark(case(first=9), said(PATH, "module")).miss == ""
    wrong = mark(case(first=9), said("semantic", "module"))
    assert (wrong.layer, wrong.cause, wrong.exact) == (False, False, False)


def test_a_composite_needs_all_of_its_causes() -> None:
    both = case(kind="composite", causes=("module", "raw"), first=9)
    assert mark(both, said(PATH, "module")).cause is False
    assert mark(both, said(PATH, "module", "raw")).cause is True
    either = case(kind="composite", causes=("module|raw",), first=9)
    assert mark(either, said(PATH, "raw")).cause is True and mark(either, said(PATH, "head")).cause is False


def test_a_clean_recording_that_is_withheld_or_refused_is_not_right() -> None:
    clean = case(layer=NONE, causes=(), first=None)
    assert mark(clean, said(NONE, since=None, exit_code=0)).layer
    assert not mark(clean, said(NONE, since=None, exit_code=1, withheld=[{}])).layer
    assert mark(clean, {"error": "no weights"}).miss == "no weights"


def test_what_cannot_be_judged_has_to_be_withheld_or_refused() -> None:
    part = case(layer=NONE, causes=(), first=None, refused=True)
    assert mark(part, said(NONE, since=None, exit_code=1, withheld=[{}])).layer
    assert not mark(part, said(NONE, since=None, exit_code=0)).layer
    assert not mark(part, said(PATH, "module", withheld=[{}])).layer


def test_a_crash_is_never_right() -> None:
    refused = case(refused=True)
    assert mark(refused, {"error": "no weights"}).layer and not mark(refused, {"error": "crash: KeyError"}).layer


@pytest.mark.parametrize(
    ("right", "of", "low", "high"), [(0, 20, 0.0, 0.1611), (20, 20, 0.8389, 1.0), (9, 10, 0.5958, 0.9821)]
)
def test_intervals_are_wilsons(right: int, of: int, low: float, high: float) -> None:
    assert wilson(right, of) == pytest.approx((low, high), abs=1e-4)


def test_the_page_tells_small_faults_apart_and_lists_misses() -> None:
    clean = case("clean", "clean", layer=NONE, causes=(), first=None)
    rows = [clean, case("small", first=9), case("large", first=9), case("late")]
    verdicts = {row.name: said(PATH, "module") for row in rows}
    verdicts["clean"] = said(NONE, since=None, exit_code=0, d_abs_mean=0.01)
    verdicts["small"]["d_abs_mean"] = 0.02
    text = page(rows, verdicts)
    above, below = text.split("## Faults below it")
    assert "0 false alarms in 1" in above and "| module | 2 | 2/2 | 2/2 | 1/2 | 2/2 |" in above
    assert "| module | 1 | 1/1 | 1/1 | 1/1 |" in below and "| late |" in below and "| large |" not in below
