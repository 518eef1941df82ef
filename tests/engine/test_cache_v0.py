"""Prefix hits of the V0 engine: every block has the weights that its memory shows, and lint names the stale ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers.engine import run_cli
from helpers.traced import OneEngine, numbers
from tracekit.tables import PREEMPTED
from tracekit.trace.reader import Trace

pytestmark = pytest.mark.engine

ENGINE = 2  # of those that share a process


@pytest.fixture(scope="module")
def recorded(v0_recorded: tuple[Path, Trace]) -> Any:
    folder, trace = v0_recorded
    return folder, OneEngine(trace, ENGINE), json.loads((folder / "truth.json").read_text())


def says_of(folder: Path, rule: str) -> str:
    """What lint says by this rule, once, of this engine."""
    fired = json.loads(run_cli("lint", folder / "trace.arrow", "--json").stdout)["fired"]
    (found,) = (one["detail"] for one in fired if (one["id"], one["where"]) == (rule, f"engine {ENGINE}"))
    return str(found)


def hits(trace: Any) -> list[list[Any]]:
    """[name, tokens cached, block ids, (oldest, newest) of each] of each hit, in order."""
    names = {number: name for name, number in numbers(trace).items()}
    found: list[list[Any]] = []
    for row in trace.table("cache").to_pylist():
        if row["block"] == 0:
            found.append([names[row["request"]], 0, [], []])
        found[-1][1] += row["num_tokens"]
        found[-1][2].append(row["block_id"])
        found[-1][3].append([row["min_weight_version"], row["max_weight_version"]])
    return found


def test_every_block_of_a_hit_has_the_versions_that_the_memory_shows(recorded: Any) -> None:
    _, trace, truth = recorded
    *known, resumed = hits(trace)
    *shown, memory = truth["hits"]
    assert known == shown and truth["num_versions"] == 5
    assert truth["freed"]
    versions = {name: own for name, _, _, own in truth["hits"]}
    assert versions["stale"] == [[0, 0]] * 4 and versions["mixed"][2] == [1, 2]
    # whose prompt is cached whole computes its last token again, into the block that all share
    assert versions["rewritten"] == [[0, 0]] * 3 + [[0, 1]]
    assert "first" not in versions and "cold" not in versions
    # the engine counts 8 blocks of the preempted request as cached; others filled half of them meanwhile, as far as
    # they came: what is in them is nobody's prefix
    assert resumed[:3] == memory[:3] and resumed[3] == [*memory[3][:4], *[[None, None]] * 4] == [
        *[[2, 2]] * 4,
        *[[None, None]] * 4,
    ]
    assert all(newest == 4 for _, newest in memory[3][4:])


def test_doctor_finds_it_sound_with_requests_that_hit_what_they_lost(recorded: Any) -> None:
    folder, trace, truth = recorded
    assert run_cli("doctor", folder / "trace.arrow").returncode == 0
    out = {row["request"] for row in trace.table("scheduled").to_pylist() if row["flags"] & PREEMPTED}
    assert out and truth["hits"][-1][0] in {name for name, number in numbers(trace).items() if number in out}


def test_lint_names_the_resumption_on_other_requests_blocks(recorded: Any) -> None:
    folder, trace, truth = recorded
    says = says_of(folder, "resumed-on-foreign-blocks")
    assert says.startswith(f"1 resumption: request {numbers(trace)[truth['hits'][-1][0]]} in engine step")
    assert says.endswith(": 4 blocks")


def test_lint_names_the_stale_hits_and_no_other(recorded: Any) -> None:
    folder, trace, _ = recorded
    says = says_of(folder, "stale-prefix-hits")
    stale = ["stale", "stale-whole", "rewritten", "mixed"]
    later = [name for name, *_ in hits(trace) if name.startswith("r") and name != "rewritten"]
    assert says.startswith(f"{len(stale) + len(later)} hits: ")
    for name, count in zip(stale, (4, 4, 4, 3), strict=True):
        assert f"request {numbers(trace)[name]} in engine step" in says and f"{count} of 4 blocks" in says
