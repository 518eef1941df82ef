"""What must not grow faster than the tokens of a run: counted in lines and elements, never by a clock."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from helpers.factories import make_tables, write_trace
from helpers.work import counted, work
from tracekit.audit.doctor import hits
from tracekit.audit.lint.stale import stale_hits
from tracekit.audit.rows import EngineRows
from tracekit.replay import planning
from tracekit.replay.borrowed import borrowed_prompts
from tracekit.replay.facts import read_facts
from tracekit.replay.ladder import Scene, parameters_in_use, plan_passes
from tracekit.replay.planning import plan_units
from tracekit.replay.reading import read_rollouts
from tracekit.replay.rollouts import Rollout
from tracekit.replay.scorers import Model
from tracekit.scoring.params import Params
from tracekit.scoring.types import Sequence
from tracekit.tables import NEW
from tracekit.trace.reader import open_trace

BLOCK = 4


def conversations(num: int, turns: int = 5) -> list[np.ndarray]:
    """Prompts of which each goes on from the one before, conversation by conversation."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(num):
        whole = rng.integers(3, 99, BLOCK * (turns + 1)).astype(np.uint32)
        found += [whole[: BLOCK * (turn + 2)] for turn in range(turns)]
    return found


def found_by(prompts: list[np.ndarray]) -> np.ndarray:
    """What each finds computed: all of the turn before."""
    return np.array([0 if len(ids) == 2 * BLOCK else len(ids) - BLOCK for ids in prompts])


def requests_of(prompts: list[np.ndarray]) -> pa.Table:
    num = len(prompts)
    columns = {
        "engine": pa.array(np.zeros(num, np.uint32)),
        "request": pa.array(np.arange(num, dtype=np.uint32)),
        "prompt_token_ids": pa.array([ids.tolist() for ids in prompts], pa.list_(pa.uint32())),
        **{name: pa.nulls(num, pa.string()) for name in ("lora", "cache_salt")},
    }
    return pa.table(columns)


def engine_rows(prompts: list[np.ndarray], cached: np.ndarray | None = None, num_steps: int = 1) -> EngineRows:
    """An engine that ran one request after the other, with a block of older weights in every hit."""
    cached = found_by(prompts) if cached is None else cached
    number = counted(np.arange(len(prompts)))
    step = counted(np.arange(len(prompts) * num_steps))
    first = step % num_steps == 0
    prefilled = np.array([len(ids) for ids in prompts]).repeat(num_steps)
    scheduled = {
        "engine_step": step,
        "request": counted(np.arange(len(prompts)).repeat(num_steps)),
        "num_computed": np.where(first, cached.repeat(num_steps), prefilled + step % num_steps),
        "num_tokens": np.where(first, prefilled - cached.repeat(num_steps), 1),
        "flags": np.where(first, NEW, 0),
    }
    nothing = {name: counted(np.zeros(0, np.int64)) for name in ("request", "position", "token_id", "flags")}
    blocks = counted(np.flatnonzero(cached) * num_steps)
    cache = {
        "engine_step": blocks,
        "request": blocks // num_steps,
        "min_weight_version": counted(np.zeros(blocks.size, np.int64)),
    }
    ones = np.ones(1, np.int64)
    tables = {
        "scheduled": scheduled,
        "tokens": nothing,
        "requests": {"request": number},
        "cache": cache,
        "steps": {"engine_step": step, "weight_version": counted(np.ones(step.size, np.int64))},
        "weights": {"weight_version": ones, "num_changed": ones, "engine_step": ones},
    }
    return EngineRows(0, tables, Requests(prompts), [], [None], [None], {}, [], {}, requests_of([]))


class Requests:
    """The table of requests, the ids of the prompts counted."""

    def __init__(self, prompts: list[np.ndarray]) -> None:
        self._table = requests_of(prompts)
        self._prompts = [SimpleNamespace(values=SimpleNamespace(to_numpy=lambda p=p: counted(p))) for p in prompts]

    def column(self, name: str) -> Any:
        return self._prompts if name == "prompt_token_ids" else self._table.column(name)


def rollouts_of(prompts: list[np.ndarray], length: int = 2) -> list[Rollout]:
    ids, zeros = np.arange(length).astype(np.uint32), np.zeros(length, np.int64)
    return [
        Rollout(Sequence(0, i, prompt, ids, Params()), "r", zeros.astype(float), zeros, zeros, zeros)
        for i, prompt in enumerate(prompts)
    ]


def borrow(num: int) -> int:
    prompts = conversations(num)
    trace, rollouts, cached = (
        SimpleNamespace(table=lambda _: requests_of(prompts)),
        rollouts_of(prompts),
        found_by(prompts),
    )
    return work(lambda: borrowed_prompts(trace, rollouts, cached))


def explain_hits(num: int) -> int:
    rows = engine_rows(conversations(num))
    return work(lambda: list(hits._unexplained(rows)))


def find_stale(num: int) -> int:
    rows = engine_rows(conversations(num))
    assert len(stale_hits(rows)) == 4 * num
    return work(lambda: stale_hits(rows))


def plan(num: int) -> int:
    rollouts = rollouts_of(conversations(num), 20)
    passes = plan_passes(Model("bfloat16"), 2048, Scene(parameters_in_use(r.sequence.params for r in rollouts)))
    return work(lambda: plan_units(rollouts, passes, lambda version: version))


@pytest.mark.parametrize("does", [borrow, explain_hits, find_stale, plan])
def test_twice_the_run_is_twice_the_work(does) -> None:
    once, twice = does(40), does(80)
    assert 1.5 < twice / once < 2.3, f"{once} steps, then {twice}"


def test_hits_of_many_lengths_are_explained_with_the_work_of_hits_of_one() -> None:
    prompts = [np.random.default_rng(i).integers(3, 99, 80).astype(np.uint32) for i in range(40)]

    def explain(cached: list[int]) -> int:
        rows = engine_rows(prompts, np.array(cached), num_steps=80)
        return work(lambda: list(hits._unexplained(rows)))

    one, many = explain([BLOCK] * 40), explain([BLOCK * (1 + i % 16) for i in range(40)])
    assert many < 1.3 * one, f"{one} steps where all find as many tokens, {many} where 16 numbers of them are found"


def test_the_stages_of_a_rollout_are_found_out_once_for_all_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    rollouts, calls = rollouts_of(conversations(8), 20), []
    stages_of, job = planning.stages_of, planning.Job
    monkeypatch.setattr(planning, "stages_of", lambda *a: calls.append("stages") or stages_of(*a))
    monkeypatch.setattr(planning, "Job", lambda *a: calls.append("job") or job(*a))
    passes = plan_passes(Model("bfloat16"), 2048, Scene(parameters_in_use(r.sequence.params for r in rollouts)))
    plan_units(rollouts, passes, lambda version: version)
    sampled = len({how.forward for how in passes}) - 1
    assert sampled and calls.count("stages") == len(rollouts)
    assert calls.count("job") <= (1 + sampled) * len(rollouts), "the trainer's, and those of other forwards, once each"


def test_reading_holds_so_many_bytes_a_token(tmp_path: Path) -> None:
    """What numpy and Python hold at most: the columns once, whatever was thrown out or is in order."""
    held = []
    for length in (400, 800):
        path = tmp_path / f"{length}.arrow"
        write_trace(path, [make_tables(20, length)])
        trace = open_trace(path)
        tracemalloc.start()
        rollouts = read_rollouts(trace)
        reading = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        facts = read_facts(trace)
        held.append((reading, tracemalloc.get_traced_memory()[1]))
        tracemalloc.stop()
        assert len(rollouts.rollouts) == 20 and facts.noted is not None
    reading, facts = ((after - before) / (20 * 400) for before, after in zip(*held, strict=True))
    assert reading < 100 and facts < 320, (reading, facts)
