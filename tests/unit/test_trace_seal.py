"""Sealing: everything in request-major order, nothing overwritten, every loss told, plain readers served."""

import errno
import os
import stat
import tracemalloc

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from helpers.factories import ENGINE_ID, count_rows, make_engine, make_tables, write_spool, write_trace
from tracekit.errors import OutputError
from tracekit.trace import gather as gather_module
from tracekit.trace.batch import BatchMeta, rows_of, to_record_batch
from tracekit.trace.ledger import IDLE_END, OPEN_END
from tracekit.trace.output import check_output, new_file
from tracekit.trace.reader import open_trace
from tracekit.trace.seal import seal
from tracekit.trace.spool import SpoolWriter


def interleaved(count=6):
    """Batches in which every request goes on from one batch to the next."""
    batches = []
    for number in range(count):
        tables = make_tables(num_requests=5, tokens=4, first_step=4 * number, seed=number, engine=number == 0)
        tables["tokens"]["position"] += np.uint32(4 * number)
        if number:
            del tables["requests"]
        if number < count - 1:
            del tables["finishes"]
        batches.append(tables)
    return batches


@pytest.fixture
def sealed(tmp_path):
    write_trace(tmp_path / "t.arrow", interleaved(), batch_rows=50)
    return str(tmp_path / "t.arrow")


def test_the_file_is_request_major_and_no_request_is_split(sealed):
    file = pa.ipc.open_file(sealed)
    assert file.num_record_batches == 2
    seen = []
    for index in range(file.num_record_batches):
        tokens = rows_of(file.get_batch(index), "tokens")
        assert len(tokens) >= 48
        seen += list(zip(tokens.field("request").to_pylist(), tokens.field("position").to_pylist(), strict=True))
    assert seen == sorted(seen) == [(request, 5 + n) for request in range(5) for n in range(24)]
    assert len(rows_of(file.get_batch(0), "engines")) == 1


@pytest.mark.parametrize("batch_rows", [1, 7, 24, 25, 60, 119, 120, 121])
def test_every_row_is_there_whatever_the_batch_size(tmp_path, batch_rows):
    batches = interleaved()
    report = write_trace(tmp_path / "t.arrow", batches, batch_rows=batch_rows)
    trace = open_trace(tmp_path / "t.arrow")
    assert trace.complete and report.complete
    for name in batches[0]:
        count = sum(count_rows(tables).get(name, 0) for tables in batches)
        assert trace.table(name).num_rows == trace.rows(name) == report.rows[name] == count
    spool = open_trace(write_spool(tmp_path / "spool", batches))
    for name in report.rows:
        assert trace.table(name).equals(spool.table(name))


def test_pyarrow_polars_and_duckdb_read_the_tokens(sealed):
    with pa.ipc.open_file(sealed) as file:
        arrow = file.read_all()
    assert len(pa.concat_arrays([chunk.flatten() for chunk in arrow["tokens"].chunks])) == 120

    frame = pl.read_ipc(sealed, columns=["tokens"]).explode("tokens").unnest("tokens")
    assert (frame.height, frame["token_id"].sum()) == (
        120,
        open_trace(sealed).table("tokens")["token_id"].to_numpy().sum(),
    )

    rows = duckdb.sql("select count(*), max(t.position) from (select unnest(tokens) as t from arrow)").fetchall()
    assert rows == [(120, 28)]


def test_nothing_is_overwritten(tmp_path):
    spool = write_spool(tmp_path / "spool", [make_tables()])
    out = tmp_path / "t.arrow"
    out.write_text("precious")
    with pytest.raises(OutputError, match="nothing is overwritten"):
        seal(spool, out)
    assert out.read_text() == "precious"


def test_a_dangling_link_is_not_written_through(tmp_path):
    (tmp_path / "t.arrow").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OutputError):
        check_output(tmp_path / "t.arrow")


def test_what_appears_during_the_work_is_not_overwritten(tmp_path):
    out = tmp_path / "t.arrow"
    with pytest.raises(OutputError, match="exists already"), new_file(out) as file:
        file.write(b"ours")
        out.write_text("precious")
    assert out.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [out]


def test_a_disk_without_hard_links_takes_a_trace(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    out = tmp_path / "t.arrow"
    with new_file(out) as file:
        file.write(b"ours")
    assert out.read_bytes() == b"ours" and list(tmp_path.iterdir()) == [out]
    out.unlink()
    with pytest.raises(OutputError, match="exists already"), new_file(out) as file:
        out.write_text("precious")
    assert out.read_text() == "precious" and list(tmp_path.iterdir()) == [out]


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), new_file(tmp_path / "t.arrow") as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_output_paths_are_checked_before_the_work(tmp_path):
    check_output(tmp_path / "t.arrow")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="No such file"):
        check_output(tmp_path / "missing" / "t.arrow")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Not a directory"):
        check_output(tmp_path / "file" / "t.arrow")
    with pytest.raises(OutputError, match="exists already"):
        check_output(tmp_path / "file")
    with pytest.raises(OutputError, match="cannot write into /proc/self"):
        check_output("/proc/self/t.arrow")


def test_the_sealed_file_is_its_owners_alone(tmp_path):
    old = os.umask(0o000)
    try:
        write_trace(tmp_path / "t.arrow")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "t.arrow").stat().st_mode) == 0o600


def test_an_empty_spool_seals(tmp_path):
    report = write_trace(tmp_path / "t.arrow", [])
    assert (report.batches, report.engines, report.rows["tokens"]) == (0, 0, 0)
    assert report.complete and open_trace(tmp_path / "t.arrow").complete


def test_an_engine_without_tokens_seals(tmp_path):
    write_trace(tmp_path / "t.arrow", [{"engines": make_engine()}])
    assert [engine["engine_id"] for engine in open_trace(tmp_path / "t.arrow").engines()] == [ENGINE_ID]


def test_many_engines_seal_into_one_file(tmp_path):
    for number in range(3):
        tables = make_tables(num_requests=number + 1, engine=make_engine(engine_id=f"e{number}"))
        write_spool(tmp_path / "spool", [tables], engine=number, engine_id=f"e{number}")
    seal(tmp_path / "spool", tmp_path / "t.arrow")
    trace = open_trace(tmp_path / "t.arrow")
    assert np.bincount(trace.table("tokens")["engine"].to_numpy()).tolist() == [8, 16, 24]
    assert trace.complete


def test_gaps_and_open_ends_become_rows_of_the_losses_table(tmp_path):
    batches = interleaved()
    report = write_trace(tmp_path / "t.arrow", batches, skip={3}, last=False)
    trace = open_trace(tmp_path / "t.arrow")
    assert trace.losses() == [vars(loss) for loss in report.losses]
    gap, end = trace.losses()
    assert (gap["from_seq"], gap["to_seq"], gap["rows"]) == (3, 3, {"tokens": 20, "scheduled": 20, "steps": 4})
    assert (end["from_seq"], end["rows"]) == (7, {})
    assert len(rows_of(pa.ipc.open_file(tmp_path / "t.arrow").get_batch(0), "losses")) == 2


def test_who_seals_while_it_holds_the_spool_says_that_it_is_over(tmp_path):
    with SpoolWriter(tmp_path / "spool") as writer:
        writer.append(to_record_batch(make_tables(), 0), BatchMeta(0, ENGINE_ID, 1, count_rows(make_tables())))
        writer.sync()
        assert open_trace(tmp_path / "spool").complete  # the engine may still come
        report = seal(tmp_path / "spool", tmp_path / "t.arrow")
    assert [(loss.from_seq, loss.reason) for loss in report.losses] == [(2, OPEN_END)]


@pytest.mark.parametrize(("told", "idle"), [(5, True), (6, True), (7, False)])
def test_an_engine_that_was_idle_leaves_a_note(tmp_path, told, idle):
    write_spool(tmp_path / "spool", interleaved(), last=False)
    report = seal(tmp_path / "spool", tmp_path / "t.arrow", idle={ENGINE_ID: told, "stranger": 1})
    seal(tmp_path / "t.arrow", tmp_path / "again.arrow")
    for trace in (open_trace(tmp_path / "t.arrow"), open_trace(tmp_path / "again.arrow")):
        assert trace.complete == idle and trace.all_losses() == report.losses
        assert trace.notes() == report.notes == ([f"engine 0: {IDLE_END}"] if idle else [])
        assert idle or [loss["from_seq"] for loss in trace.losses()] == [7]


def test_an_engine_that_said_goodbye_or_could_not_deliver_leaves_no_note(tmp_path):
    write_spool(tmp_path / "well", interleaved())
    assert not seal(tmp_path / "well", tmp_path / "a.arrow", idle={ENGINE_ID: 6}).notes
    write_spool(tmp_path / "spool", interleaved(), last=False)
    extra = {"engine_id": ENGINE_ID, "from_seq": 7, "to_seq": 9, "reason": "no daemon", "rows": {"tokens": 60}}
    report = seal(tmp_path / "spool", tmp_path / "b.arrow", [extra], {ENGINE_ID: 6})
    assert not report.notes and [loss.from_seq for loss in report.losses] == [7]


def test_undelivered_batches_are_losses_and_close_the_open_end(tmp_path):
    extra = {"engine_id": ENGINE_ID, "from_seq": 7, "to_seq": 9, "reason": "no daemon", "rows": {"tokens": 60}}
    write_trace(tmp_path / "t.arrow", interleaved(), last=False, extra_losses=[extra])
    (loss,) = open_trace(tmp_path / "t.arrow").losses()
    assert loss == {"engine": 0, "from_seq": 7, "to_seq": 9, "reason": "no daemon", "rows": {"tokens": 60}}


def test_what_was_stored_after_all_is_not_lost(tmp_path):
    batches = interleaved()
    rows = {"tokens": 60, "scheduled": 60, "steps": 12, "finishes": 5}
    extra = {"engine_id": ENGINE_ID, "from_seq": 5, "to_seq": 7, "reason": "no ack", "rows": rows}
    write_trace(tmp_path / "a.arrow", batches, last=False, extra_losses=[extra])
    (loss,) = open_trace(tmp_path / "a.arrow").losses()
    assert (loss["from_seq"], loss["to_seq"], loss["rows"]) == (7, 7, {"tokens": 20, "scheduled": 20, "steps": 4})

    all_stored = extra | {"to_seq": 6}
    write_trace(tmp_path / "b.arrow", batches, extra_losses=[all_stored])
    assert open_trace(tmp_path / "b.arrow").complete


def test_an_engine_that_delivered_nothing_is_in_the_trace(tmp_path):
    extra = {"engine_id": "stranger", "from_seq": 1, "to_seq": 4, "reason": "no daemon", "rows": {"tokens": 9}}
    write_trace(tmp_path / "t.arrow", extra_losses=[extra])
    trace = open_trace(tmp_path / "t.arrow")
    assert [engine["engine_id"] for engine in trace.engines()] == [ENGINE_ID, "stranger"]
    assert trace.losses() == [{"engine": 1, "from_seq": 1, "to_seq": 4, "reason": "no daemon", "rows": {"tokens": 9}}]


def test_a_sealed_trace_seals_again_to_the_same_rows(tmp_path):
    write_trace(tmp_path / "a.arrow", interleaved(), skip={3}, batch_rows=50)
    seal(tmp_path / "a.arrow", tmp_path / "b.arrow")
    first, second = open_trace(tmp_path / "a.arrow"), open_trace(tmp_path / "b.arrow")
    assert first.losses() == second.losses()
    for name in first.stored[0][0].meta.rows:
        assert first.table(name).equals(second.table(name))


def test_request_numbers_far_apart_cost_no_memory(tmp_path):
    tables = make_tables(num_requests=2, tokens=4)
    for columns in tables.values():
        if "request" in columns:
            columns["request"] = np.where(columns["request"] == 1, np.uint32((1 << 32) - 2), columns["request"])
    tracemalloc.start()
    report = write_trace(tmp_path / "t.arrow", [tables], batch_rows=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.batches == 2 and report.rows["tokens"] == 8 and peak < 50 << 20


def test_long_prompts_make_more_batches_though_tokens_are_few(tmp_path):
    batches = [
        make_tables(num_requests=4, tokens=1, prompt_tokens=800, first_request=4 * n, first_step=n, engine=n == 0)
        for n in range(5)
    ]
    report = write_trace(tmp_path / "t.arrow", batches, batch_rows=200)
    assert report.batches == 10 and report.rows["tokens"] == 20 and report.rows["requests"] == 20
    found = open_trace(tmp_path / "t.arrow").table("requests")
    assert found.column("request").to_pylist() == list(range(20))


def test_tables_without_requests_are_gathered_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(gather_module, "GATHER", 3)
    monkeypatch.setattr(gather_module, "MERGE_PAIRS", 4)
    batches = interleaved(count=11)
    report = write_trace(tmp_path / "t.arrow", batches, batch_rows=60)
    steps = open_trace(tmp_path / "t.arrow").table("steps").column("engine_step").to_pylist()
    assert steps == sorted(steps) and len(steps) == report.rows["steps"] == 44
