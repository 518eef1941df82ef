"""The daemon's live mismatch: by the formulas of the diagnosis, in any order of arrival, in bounded memory."""

import numpy as np
import pytest

from helpers.factories import ENGINE_ID, make_engine, make_tables
from tracekit.diagnose.metrics import measure
from tracekit.tables import ACCEPTED, DISCARDED
from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekitd import mismatch as module
from tracekitd.mismatch import Mismatch
from tracekitd.watch import Watch

TRAINER = "f" * 32


def said(old, request_id="request-0", index=0, engine_id=None, run=None, train_step=None):
    """A batch with one annotation."""
    columns = {"wall_ns": [1], "run": [run], "engine_id": [engine_id], "request_id": [request_id], "index": [index]}
    columns |= {"train_step": [train_step], "group": [None], "reward": [None], "advantages": [[]], "token_ids": [[]]}
    return to_record_batch({"annotations": {**columns, "old_logprobs": [old]}}, 1 << 16), 1 << 16, TRAINER


def engine(tables, number=0, engine_id=ENGINE_ID):
    return to_record_batch(tables, number), number, engine_id


def rollouts(**options):
    tables = make_tables(num_requests=2, tokens=40, engine=make_engine(run="a"), **options)
    tokens = tables["tokens"]
    return tables, [np.asarray(tokens["rollout_logprob"])[np.asarray(tokens["request"]) == n] for n in range(2)]


def test_the_numbers_are_those_of_the_diagnosis():
    tables, values = rollouts()
    seen = Mismatch()
    seen.see(*engine(tables, 3))
    rng = np.random.default_rng(0)
    olds = [value + rng.normal(0, 0.1, value.size).astype(np.float32) for value in values]
    for number, old in enumerate(olds):
        seen.see(*said(old, f"request-{number}", train_step=5))
    expected = measure(np.concatenate(values).astype(float), np.concatenate(olds).astype(float))
    for sums in (seen.total[3], seen.newest[3]):
        assert sums.num_tokens == 80
        assert sums.ratio / 80 == pytest.approx(expected.ratio_mean, rel=1e-12)
        assert sums.kl / 80 == pytest.approx(expected.mismatch_kl, rel=1e-9)
    seen.see(*said(values[0], train_step=6))  # the newest step alone is shown
    assert seen.newest[3].num_tokens == 40 and seen.newest[3].kl == 0 and seen.total[3].num_tokens == 120
    seen.see(*said(values[0], train_step=5))
    assert seen.newest[3].num_tokens == 40 and seen.outcomes == {"compared": 4}


def split(tables, at):
    """The same rows in two batches; requests and finishes come where an engine would send them."""

    def rows(columns, begin, end):
        return {name: values[begin:end] for name, values in columns.items()}

    cut = {name: len(next(iter(columns.values()))) * at // 40 for name, columns in tables.items()}
    first = {name: rows(tables[name], 0, cut[name]) for name in ("tokens", "steps", "scheduled")}
    first |= {name: tables[name] for name in ("requests", "engines")}
    second = {name: rows(tables[name], cut[name], None) for name in ("tokens", "steps", "scheduled")}
    return first, second | {"finishes": tables["finishes"]}


def test_an_annotation_waits_for_the_end_of_its_rollout():
    tables, values = rollouts()
    first, second = split(tables, 17)
    seen = Mismatch()
    seen.see(*said(values[1] - 1, "request-1"))
    seen.see(*engine(first))
    seen.see(*said(values[0] - 1))
    assert seen.num_waiting == 2 and not seen.total
    seen.see(*engine(second))
    assert seen.num_waiting == 0 and seen.total[0].num_tokens == 80
    assert seen.total[0].ratio / 80 == pytest.approx(np.exp(-1), rel=1e-6)


def test_discarded_tokens_are_not_compared_and_a_client_may_have_a_part():
    tables, values = rollouts()
    flags = np.where(np.asarray(tables["tokens"]["position"]) >= 40, DISCARDED, ACCEPTED).astype("u1")
    tables["tokens"]["flags"] = flags
    seen = Mismatch()
    seen.see(*engine(tables))
    seen.see(*said(values[0][:35]))
    seen.see(*said(values[0][:20]))
    assert seen.total[0].num_tokens == 55 and seen.total[0].kl == 0
    seen.see(*said(values[0][:36]))
    assert seen.outcomes == {"compared": 2, "too long": 1}


def test_what_has_no_finite_ratio_is_counted_apart():
    tables, values = rollouts()
    seen = Mismatch()
    seen.see(*engine(tables))
    old = values[0].copy()
    old[:4] = [np.nan, -np.inf, np.inf, 1e30]
    seen.see(*said(old))
    assert seen.num_not_finite == 4 and seen.total[0].num_tokens == 36 and seen.total[0].ratio == 36
    blind, _ = rollouts(logprobs=False, first_request=2)
    seen.see(*engine(blind))
    seen.see(*said(values[0], "request-2"))
    assert seen.num_not_finite == 44


def test_the_same_id_in_two_engines_needs_the_engine_or_the_run():
    tables, values = rollouts()
    other = tables | {"engines": make_engine(run="b", engine_id="e" * 32)}
    seen = Mismatch()
    seen.see(*engine(tables, 0))
    seen.see(*engine(other, 1, "e" * 32))
    seen.see(*said(values[0]))
    assert seen.outcomes == {"ambiguous": 1} and not seen.total
    seen.see(*said(values[0], run="b"))
    seen.see(*said(values[0], engine_id=ENGINE_ID))
    assert {number: sums.num_tokens for number, sums in seen.total.items()} == {0: 40, 1: 40}
    seen.see(*said(values[0], "internal-0", index=7, run="b"))  # the engine's own id stands for one completion
    assert seen.total[1].num_tokens == 80


def test_the_id_of_an_answer_of_a_server_is_that_of_its_first_prompt():
    tables, values = rollouts()
    tables["requests"]["external_id"] = ["cmpl-1-0", "cmpl-1-1"]
    seen = Mismatch()
    seen.see(*said(values[0] + 1, "cmpl-1"))
    seen.see(*engine(tables))
    seen.see(*said(values[1], "cmpl-1-1"))
    assert seen.outcomes == {"compared": 2} and seen.total[0].num_tokens == 80


def test_memory_is_bounded_whatever_comes(monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 40_000)
    seen = Mismatch()
    for number in range(200):
        seen.see(*said(np.zeros(100, np.float32), f"nobody-{number}"))
        seen.see(*said(np.zeros(100, np.float32), "again"))
        tables, _ = rollouts(first_request=2 * number)
        tables["requests"]["external_id"] = ["same", "same"]
        seen.see(*engine(tables))
    assert len(seen._rollouts) <= 40 and seen.num_waiting <= 30
    names = {name for rollout in seen._rollouts.values() for name in rollout.names}
    assert set(seen._by_name) <= names and all(len(own) <= module.MAX_SAME for own in seen._by_name.values())
    assert seen.outcomes["without its rollout"] > 100 and seen._rollout_bytes <= 40_000 >= seen._said_bytes


def test_a_fault_of_it_is_said_once_and_stops_nothing_else(monkeypatch, capsys):
    watch = Watch(compare=True)
    monkeypatch.setattr(Mismatch, "see", lambda *_: 1 / 0)
    batch, number, engine_id = engine(make_tables(engine=make_engine()))
    for _ in range(3):
        watch.see(batch, BatchMeta(number, engine_id, 1))
    assert capsys.readouterr().err.count("stand still: ZeroDivisionError") == 1


def test_stalls_are_summed_by_engine():
    columns = {"engine_step": [3, 4], "begin_ns": [10**9, 5 * 10**9], "end_ns": [3 * 10**9, 6 * 10**9]}
    batch = to_record_batch({"stalls": {**columns, "gave_up": [0, 1]}}, 2)
    watch = Watch(compare=True)
    watch.see(batch, BatchMeta(2, ENGINE_ID, 1))
    watch.see(batch, BatchMeta(2, ENGINE_ID, 2))
    assert watch.stall_secs == {2: 6.0}
