"""Every form of a trace opens, and everything that is not one says so in a sentence."""

import gc
import json
import os
import shutil

import numpy as np
import pyarrow as pa
import pytest

from helpers.factories import ENGINE_ID, count_rows, make_engine, make_tables, write_spool, write_trace
from tracekit.errors import NotATraceError, SchemaTooNewError, TraceError, TraceTruncatedError, UnreadableTraceError
from tracekit.tables import SCHEMA_VERSION, SINCE, TABLES
from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekit.trace.ledger import GAP, OPEN_END
from tracekit.trace.proof import to_metadata
from tracekit.trace.reader import ORDER, open_trace
from tracekit.trace.schema import arrow_schema, row_schema
from tracekit.trace.seal import seal
from tracekit.trace.segments import segment_paths
from tracekit.trace.spool import SpoolWriter

TWO = [make_tables(), make_tables(first_request=3, first_step=8, seed=1, engine=False)]


@pytest.fixture
def spool(tmp_path):
    return write_spool(tmp_path / "spool", TWO)


@pytest.fixture
def sealed(tmp_path):
    write_trace(tmp_path / "sealed.arrow", TWO)
    return tmp_path / "sealed.arrow"


def expected(name, column):
    """The values of a column of TWO in the order of the table."""
    rows = []
    for tables in TWO:
        if name in tables:
            keys = [tables[name][key] for key in ORDER[name] if key != "engine"]
            rows += list(zip(*keys, tables[name][column], strict=True))
    return [row[-1] for row in sorted(rows, key=lambda row: row[:-1])]


@pytest.mark.parametrize("form", ["spool", "sealed", "segment", "glob"])
def test_every_form_reads_the_same(form, spool, sealed, tmp_path):
    path = {
        "spool": spool,
        "sealed": sealed,
        "segment": segment_paths(spool)[0],
        "glob": tmp_path / "sea*.arrow",
    }[form]
    trace = open_trace(path)
    assert trace.schema_version == SCHEMA_VERSION
    assert trace.complete and not trace.losses()
    for name in TABLES:
        table = trace.table(name)
        assert table.schema == row_schema(name)
        assert table.num_rows == trace.rows(name) == sum(count_rows(tables).get(name, 0) for tables in TWO)
    for name, column in [("tokens", "token_id"), ("tokens", "rollout_logprob"), ("scheduled", "num_computed")]:
        got = trace.table(name)[column].to_numpy()
        assert np.array_equal(got, np.array(expected(name, column), got.dtype))
    assert trace.table("requests")["prompt_token_ids"].to_pylist() == [
        ids.tolist() for tables in TWO for ids in tables["requests"]["prompt_token_ids"]
    ]
    (engine,) = trace.engines()
    assert (engine["engine_id"], engine["logprobs_mode"]) == (ENGINE_ID, "raw_logprobs")
    assert sum(len(batch) for batch in trace.batches()) == len(trace.stored)


def test_a_link_that_its_user_names_is_followed(sealed, tmp_path):
    (tmp_path / "latest.arrow").symlink_to(sealed)
    assert open_trace(tmp_path / "latest.arrow").rows("tokens") == open_trace(sealed).rows("tokens")
    for name, target in (("loop", "loop"), ("zeros", "/dev/zero"), ("gone", "/nowhere")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(UnreadableTraceError, match=f"cannot read .*{target}"):
            open_trace(tmp_path / name)


def test_tables_have_their_order_across_engines(tmp_path):
    folder = tmp_path / "spool"
    write_spool(folder, TWO[::-1], engine=1, engine_id="b")
    write_spool(folder, [make_tables(engine=make_engine(engine_id="a"))], engine=0, engine_id="a")
    trace = open_trace(folder)
    for name, keys in ORDER.items():
        rows = list(zip(*(trace.table(name)[key].to_pylist() for key in keys), strict=True))
        assert rows == sorted(rows)
    assert trace.table("tokens").num_rows == 72


def test_a_glob_over_two_traces_numbers_the_engines_anew(tmp_path):
    for name in "ab":
        write_trace(tmp_path / f"{name}.arrow", [make_tables(engine=make_engine(engine_id=name))], engine_id=name)
    trace = open_trace(tmp_path / "*.arrow")
    assert [(engine["engine"], engine["engine_id"]) for engine in trace.engines()] == [(0, "a"), (1, "b")]
    assert trace.table("tokens")["engine"].to_pylist() == [0] * 24 + [1] * 24


def test_the_same_engine_in_two_files_is_refused(tmp_path):
    for name in "ab":
        write_trace(tmp_path / f"{name}.arrow")
    with pytest.raises(TraceError, match="is in two of the files"):
        open_trace(tmp_path / "*.arrow")


def test_a_spool_reads_while_a_writer_appends(tmp_path):
    folder = tmp_path / "spool"
    with SpoolWriter(folder) as writer:
        assert open_trace(folder).table("tokens").num_rows == 0
        for seq in (1, 2, 3):
            writer.append(to_record_batch(make_tables(), 0), BatchMeta(0, ENGINE_ID, seq, {"tokens": 24 * seq}))
            trace = open_trace(folder)
            assert trace.live and trace.complete
            assert trace.table("tokens").num_rows == 24 * seq
        with open(segment_paths(folder)[0], "ab") as file:
            file.write(b"\xff\xff\xff\xff\x10")  # the writer is in the middle of a batch
        assert open_trace(folder).complete
    trace = open_trace(folder)
    assert not trace.live and not trace.complete


def test_a_trace_without_tokens_is_valid(tmp_path):
    write_trace(tmp_path / "t.arrow", [])
    trace = open_trace(tmp_path / "t.arrow")
    assert trace.complete and trace.engines() == [] and trace.table("tokens").num_rows == 0


def test_an_unknown_engine_has_at_least_its_id(tmp_path):
    write_spool(tmp_path / "spool", [make_tables(engine=False)])
    assert open_trace(tmp_path / "spool").engines() == [{"engine": 0, "engine_id": ENGINE_ID}]


def foreign(path, schema, form=pa.ipc.new_file):
    with pa.OSFile(str(path), "wb") as sink, form(sink, schema) as writer:
        writer.write_table(schema.empty_table())
    return path


@pytest.mark.parametrize("form", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_of_somebody_else_is_not_a_trace(tmp_path, form):
    path = foreign(tmp_path / "f", pa.schema([("x", pa.int32())]), form)
    with pytest.raises(NotATraceError, match="not a trace of tracekit"):
        open_trace(path)


@pytest.mark.parametrize("form", [pa.ipc.new_file, pa.ipc.new_stream])
def test_a_newer_schema_is_named(tmp_path, form):
    metadata = {b"tracekit.schema_version": str(SCHEMA_VERSION + 1)}
    path = foreign(tmp_path / "f", pa.schema([("x", pa.int32())], metadata=metadata), form)
    with pytest.raises(SchemaTooNewError, match=f"schema {SCHEMA_VERSION + 1}"):
        open_trace(path)


def test_our_version_with_other_columns_is_not_a_trace(tmp_path):
    path = foreign(tmp_path / "f", pa.schema([("x", pa.int32())], metadata=arrow_schema().metadata))
    with pytest.raises(NotATraceError, match="columns"):
        open_trace(path)


@pytest.mark.parametrize("content", [b"", b"hello, this is text", b"PAR1" + bytes(100), b"\xff\xfe" + bytes(50)])
def test_other_files_are_not_traces(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(NotATraceError):
        open_trace(tmp_path / "f")


def test_missing_paths_and_foreign_folders_get_a_sentence(tmp_path):
    with pytest.raises(TraceError, match="there is no such trace"):
        open_trace(tmp_path / "nowhere")
    with pytest.raises(TraceError, match="there is no such trace"):
        open_trace(tmp_path / "*.arrow")
    with pytest.raises(NotATraceError, match="not the spool of a trace"):
        open_trace(tmp_path)


def test_a_cut_sealed_file_is_truncated(sealed):
    data = sealed.read_bytes()
    sealed.write_bytes(data[:-1])
    with pytest.raises(TraceTruncatedError, match=f"after {len(data) - 1} bytes"):
        open_trace(sealed)


@pytest.mark.parametrize("skip", [(2, 3), (1, 2)], ids=str)
def test_gaps_are_counted_to_the_row(tmp_path, skip):
    batches = [make_tables(first_request=3 * n, first_step=8 * n, engine=False) for n in range(4)]
    folder = write_spool(tmp_path / "spool", batches, skip=skip)
    (loss,) = open_trace(folder).losses()
    assert (loss["engine"], loss["from_seq"], loss["to_seq"], loss["reason"]) == (0, *skip, GAP)
    assert loss["rows"] == {"tokens": 48, "scheduled": 48, "steps": 16, "requests": 6, "finishes": 6}


def test_a_loss_that_the_recorder_reported_is_not_counted_twice(tmp_path):
    lost = count_rows(TWO[0])
    report = {"from_seq": [1], "to_seq": [1], "reason": ["buffer full"], "rows": [json.dumps(lost)]}
    folder = write_spool(tmp_path / "spool", [TWO[0], TWO[1] | {"losses": report}], skip={1})
    (loss,) = open_trace(folder).losses()
    assert (loss["reason"], loss["rows"]) == ("buffer full", lost)
    assert open_trace(folder).table("losses").num_rows == 1


@pytest.mark.parametrize("last", [True, False])
def test_a_loss_that_the_last_batch_reports_of_itself_is_counted_once_and_closes_no_end(tmp_path, last):
    report = {"from_seq": [2], "to_seq": [2], "reason": ["too large"], "rows": [json.dumps({"tokens": 6})]}
    with SpoolWriter(tmp_path / "spool") as writer:
        produced = count_rows(TWO[0])
        writer.append(to_record_batch(TWO[0], 0), BatchMeta(0, ENGINE_ID, 1, produced))
        produced = produced | {"tokens": produced["tokens"] + 6}
        writer.append(to_record_batch({"losses": report}, 0), BatchMeta(0, ENGINE_ID, 2, produced, last=last))
    told, *more = open_trace(tmp_path / "spool").losses()
    assert (told["from_seq"], told["reason"], told["rows"]) == (2, "too large", {"tokens": 6})
    assert [(loss["from_seq"], loss["reason"]) for loss in more] == ([] if last else [(3, OPEN_END)])


def test_rows_that_only_the_counter_knows_are_lost(tmp_path):
    with SpoolWriter(tmp_path / "spool") as writer:
        meta = BatchMeta(0, ENGINE_ID, 1, {"tokens": 30}, {"tokens": 6}, True)
        writer.append(to_record_batch(make_tables(), 0), meta)
    (loss,) = open_trace(tmp_path / "spool").losses()
    assert loss["rows"] == {"tokens": 6}


def test_an_engine_that_never_said_goodbye_is_an_open_end(tmp_path):
    folder = write_spool(tmp_path / "spool", TWO, last=False)
    (loss,) = open_trace(folder).losses()
    assert (loss["from_seq"], loss["to_seq"], loss["rows"]) == (3, 0, {})
    assert "goodbye" in loss["reason"]


def test_a_spool_can_be_read_from_a_copy_without_its_lock(spool, tmp_path):
    shutil.copytree(spool, tmp_path / "copy", ignore=shutil.ignore_patterns("lock"))
    assert open_trace(tmp_path / "copy").table("tokens").num_rows == 48


def old_batch(batch, schema):
    """A batch as an older tracekit would have written it: without the tables and the columns that it did not know."""
    columns = []
    for field in schema:
        rows, kind = batch.column(field.name).flatten(), field.type.value_type
        cut = pa.StructArray.from_arrays([rows.field(column.name) for column in kind], fields=list(kind))
        columns.append(pa.ListArray.from_arrays(pa.array([0, len(rows)], pa.int32()), cut, type=field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


@pytest.mark.parametrize("form", [pa.ipc.new_file, pa.ipc.new_stream])
def test_a_trace_of_the_schema_before_is_read_and_has_nothing_in_the_tables_it_lacks(tmp_path, form):
    sealed = form is pa.ipc.new_file
    old, tables = arrow_schema(2), make_tables()
    assert set(arrow_schema().names) - set(old.names) == {name for name in SINCE if "." not in name}
    batch = old_batch(to_record_batch(tables, 0), old)
    runs = ((1, 1),) if sealed else ()
    meta = BatchMeta(0, ENGINE_ID, 1, count_rows(tables), {}, True, of=int(sealed), seqs=runs)
    path = tmp_path / ("t.arrow" if sealed else "hot-000001.arrows")
    with open(path, "wb") as file, form(file, old) as writer:
        writer.write_batch(batch, custom_metadata=to_metadata(batch, meta))
    again = tmp_path / "again.arrow"
    seal(path, again)
    for trace, version in ((open_trace(path), 2), (open_trace(again), SCHEMA_VERSION)):
        assert trace.complete and trace.schema_version == version
        assert trace.table("prompt_logprobs").num_rows == 0
        assert trace.table("engines").column("run").to_pylist() == [None]
        assert trace.table("tokens").num_rows == len(tables["tokens"]["token_id"])
        assert [b.schema.names for b in trace.batches()] == [arrow_schema().names]


def test_a_trace_that_nobody_holds_is_closed_without_the_collector(sealed):
    """A daemon opens its own parts again and again, and has a limit of descriptors."""
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            open_trace(sealed).table("tokens")
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()
