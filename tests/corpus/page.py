"""docs/accuracy.md: how often a verdict is right, class by class, and every miss with what was said instead."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corpus.case import NONE, REPORT, SECOND, Case
from corpus.judging import Mark, mark, wilson
from corpus.prose import BLIND, FIGURES, FOUND, HEAD, NOW
from corpus.rows import more
from corpus.scoring import code_hash
from tracekit.plural import plural

PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"
TIMES = 3.0  # a fault is above the stated size where mean |d| is so many times a clean recording's


def write(cases: Sequence[Case], said: Mapping[str, Mapping[str, Any]]) -> None:
    PAGE.write_text(page(cases, said), encoding="utf-8")


def page(cases: Sequence[Case], said: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page for the cases that have a verdict."""
    every = {use: [case for case in cases if case.use == use and case.kind != more.K] for use in (REPORT, SECOND)}
    report, second = ([case for case in every[use] if case.name in said] for use in (REPORT, SECOND))
    marks = {case.name: mark(case, said[case.name]) for case in cases if case.name in said}
    clean = [case for case in report if case.truth.layer == NONE and not case.truth.refused]
    further = [case for case in cases if case.kind == more.K and case.use == REPORT and case.name in said]
    above, below = _by_size(
        [case for case in report if case not in clean], _floors(further, said) | _floors(clean, said), said
    )
    extent = (
        f"All {len(report)} of them are recorded and replayed."
        if len(report) == len(every[REPORT])
        else f"Of {len(every[REPORT])} rows {len(report)} are measured here, drawn by lot within each engine."
    )
    text = [
        HEAD.format(times=TIMES, extent=extent, machine=machine(), code=code_hash(), earlier=_earlier(report, said))
    ]
    text += [f"**Clean recordings**: {_alarms(clean, marks)}.\n", *_further(cases, marks)]
    text += ["## Faults above the size\n", *_table(above, marks, said)]
    if below:
        text += ["\n## Faults below it\n", *_table(below, marks, said)]
    text += ["\n## Every miss\n", *_misses(report, marks)]
    if second:
        text += [BLIND.format(num=len(second), figures=FIGURES).rstrip("\n"), NOW, *_table(second, marks, said)]
        text += ["\nOf these it misses now:\n", *_misses(second, marks)]
    text += ["\n## Public reports\n", *_reports([*report, *second], marks), FOUND.rstrip("\n")]
    return "\n".join(text) + "\n"


def _earlier(report: Sequence[Case], said: Mapping[str, Mapping[str, Any]]) -> str:
    """Say how many rows an earlier code judged, where the page had to be written before all were judged again."""
    codes = [code for case in report if (code := said[case.name].get("code", code_hash())) != code_hash()]
    names = " and ".join(f"`{code}`" for code in sorted(set(codes)))
    return f"; of {len(codes)} of the {len(report)} rows {names}, before the last changes of detectors" if codes else ""


def _alarms(clean: Sequence[Case], marks: Mapping[str, Mark]) -> str:
    alarms = sum(not marks[case.name].layer for case in clean)
    low, high = wilson(alarms, len(clean))
    return f"{plural(alarms, 'false alarm')} in {len(clean)} ({_percent(low)} to {_percent(high)})"


def _further(cases: Sequence[Case], marks: Mapping[str, Mark]) -> list[str]:
    """Lines on recordings that are nothing but clean, by engine."""
    rows = [case for case in cases if case.kind == more.K and case.use == REPORT and case.name in marks]
    if not rows:
        return []
    groups = dict.fromkeys(case.group for case in rows)
    by_group = ", ".join(f"{group} {sum(case.group == group for case in rows)}" for group in groups)
    missed = [f"- {case.name}: {marks[case.name].miss}" for case in rows if marks[case.name].miss]
    num = sum(case.kind == more.K and case.use == REPORT for case in cases)
    said = (
        f"**Further clean recordings** ({len(rows)} of {num} rows of `more.py`: {by_group}): {_alarms(rows, marks)}.\n"
    )
    return [said, *missed, *([""] if missed else [])]


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{name}, {'AVX-512 with bfloat16' if 'avx512_bf16' in flags else 'no AVX-512 for bfloat16'}, 1 thread"


def _floors(clean: Sequence[Case], said: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Median of mean |d| of the clean recordings of each group."""
    found: dict[str, list[float]] = {}
    for case in clean:
        if said[case.name].get("d_abs_mean") is not None:
            found.setdefault(case.group, []).append(said[case.name]["d_abs_mean"])
    return {group: statistics.median(sizes) for group, sizes in found.items()}


def _by_size(
    faults: Sequence[Case], floors: Mapping[str, float], said: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Case], list[Case]]:
    above, below = [], []
    for case in faults:
        size, floor = said[case.name].get("d_abs_mean"), floors.get(case.group)
        small = size is not None and floor is not None and size < TIMES * floor
        (below if small else above).append(case)
    return above, below


def _table(cases: Sequence[Case], marks: Mapping[str, Mark], said: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows = ["| class | rows | layer | cause | token | ± 1 | module | seconds |", "|---|---|---|---|---|---|---|---|"]
    kinds = list(dict.fromkeys(case.kind for case in cases))
    for kind in kinds:
        rows.append(_row(kind, [case for case in cases if case.kind == kind], marks, said))
    rows.append(_row("**all**", cases, marks, said, intervals=True))
    return rows


def _row(
    name: str,
    cases: Sequence[Case],
    marks: Mapping[str, Mark],
    said: Mapping[str, Mapping[str, Any]],
    *,
    intervals: bool = False,
) -> str:
    cells = []
    for field in ("layer", "cause", "exact", "near", "module"):
        values = [value for case in cases if (value := getattr(marks[case.name], field)) is not None]
        cell = f"{sum(values)}/{len(values)}" if values else "–"
        if intervals and values:
            low, high = wilson(sum(values), len(values))
            cell += f" = {_percent(sum(values) / len(values))} ({_percent(low)} to {_percent(high)})"
        cells.append(cell)
    secs = statistics.mean(said[case.name]["cpu_secs"] for case in cases) if cases else 0.0
    return f"| {name} | {len(cases)} | {' | '.join(cells)} | {secs:.0f} |"


def _misses(cases: Sequence[Case], marks: Mapping[str, Mark]) -> list[str]:
    rows = ["| row | size | right would be | said | why |", "|---|---|---|---|---|"]
    for case in cases:
        if marks[case.name].miss:
            truth = case.truth
            right = " or ".join(truth.causes) if case.kind != "composite" else " and ".join(truth.causes)
            token = "" if truth.first is None else f", token {truth.first}"
            right = right.replace("|", " or ")  # which would end the cell
            module = f", {truth.module}" if truth.module else ""
            right = truth.layer if truth.layer == NONE else f"{truth.layer}: {right}{token}{module}"
            rows.append(f"| {case.name} | {case.size} | {right} | {marks[case.name].miss} | {case.why} |")
    return rows if len(rows) > 2 else ["None."]


def _reports(cases: Sequence[Case], marks: Mapping[str, Mark]) -> list[str]:
    rows = ["| report | row | layer | cause |", "|---|---|---|---|"]
    for case in cases:
        if case.source and case.truth.layer != NONE:
            cause = marks[case.name].cause
            rows.append(f"| {case.source} | {case.name} | {_tick(marks[case.name].layer)} | {_tick(cause)} |")
    return rows


def _tick(value: bool | None) -> str:
    return "–" if value is None else "right" if value else "wrong"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
