"""One batch: what is written is what is read, in every type, and nothing else passes the checksums."""

import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.factories import make_tables
from tracekit.errors import TraceCorruptError
from tracekit.tables import TABLES
from tracekit.trace.batch import BatchMeta, batch_of_structs, request_major, rows_of, sort_order, to_record_batch
from tracekit.trace.proof import from_metadata, to_metadata, verify

WIDTHS = {"u1": (np.uint8, 0, 2**8 - 1), "u4": (np.uint32, 0, 2**32 - 1), "u8": (np.uint64, 0, 2**64 - 1)}
WIDTHS["i8"] = (np.int64, -(2**63), 2**63 - 1)


def values_of(kind, count):
    """A strategy of one column in its numpy form."""
    base = kind.removesuffix("?")
    if base == "str":
        text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
        return st.lists(text | st.none() if kind.endswith("?") else text, min_size=count, max_size=count)
    if base == "list<u4>":
        return st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=5), min_size=count, max_size=count)
    if base == "list<f4>":
        return st.lists(st.lists(st.floats(width=32), max_size=5), min_size=count, max_size=count)
    if base == "f4":
        numbers, dtype = st.floats(width=32), np.float32
    else:
        dtype, low, high = WIDTHS[base]
        numbers = st.integers(low, high)
    column = st.lists(numbers, min_size=count, max_size=count).map(lambda items: np.array(items, dtype))
    if not kind.endswith("?"):
        return column
    masks = st.lists(st.booleans(), min_size=count, max_size=count)
    return st.tuples(column, masks).map(lambda pair: np.ma.masked_array(pair[0], mask=pair[1]))


@st.composite
def all_tables(draw):
    tables = {}
    for name in draw(st.sets(st.sampled_from(sorted(TABLES)))):
        count = draw(st.integers(0, 4))
        tables[name] = {
            column: draw(values_of(kind, count)) for column, kind in TABLES[name].items() if column != "engine"
        }
    return tables


def plain_rows(tables, name, engine):
    """The rows of one table as tuples of plain values; floats as their bits, so that NaN equals itself."""
    columns = []
    for column, kind in TABLES[name].items():
        if column == "engine":
            count = len(next(iter(tables[name].values())))
            columns.append([engine] * count)
        else:
            columns.append([plain(value, kind) for value in tables[name][column]])
    return list(zip(*columns, strict=True))


def plain(value, kind):
    if value is None or value is np.ma.masked:
        return None
    if kind.startswith("f4"):
        return struct.pack("<f", value)
    if kind == "list<f4>":
        return [struct.pack("<f", item) for item in value]
    if kind.startswith("list"):
        return [int(item) for item in value]
    return value if isinstance(value, str) else int(value)


@settings(max_examples=150, deadline=None)
@given(all_tables(), st.integers(0, 2**32 - 2))
def test_rows_written_are_rows_read(tables, engine):
    batch = to_record_batch(tables, engine)
    meta = BatchMeta(engine, "id", 1, {"tokens": 3}, {"tokens": 1}, True)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(batch, custom_metadata=to_metadata(batch, meta))
    read, metadata = pa.ipc.open_stream(sink.getvalue()).read_next_batch_with_custom_metadata()
    found = from_metadata(dict(metadata), "here")
    verify(read, found, "here")
    assert (found.engine, found.produced, found.lost, found.last) == (engine, {"tokens": 3}, {"tokens": 1}, True)
    for name, columns in TABLES.items():
        rows = rows_of(read, name)
        got = list(
            zip(
                *([plain(value, kind) for value in rows.field(column).to_pylist()] for column, kind in columns.items()),
                strict=True,
            )
        )
        expected = plain_rows(tables, name, engine) if name in tables else []
        assert sorted(map(repr, got)) == sorted(map(repr, expected))
        assert found.rows.get(name, 0) == len(expected)


@settings(deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), max_size=30), st.sampled_from([np.uint32, np.uint64]))
def test_sort_order_is_the_stable_order_of_tuples(rows, dtype):
    order = sort_order(np.array(rows, dtype).reshape(-1, 3).T)
    expected = sorted(range(len(rows)), key=lambda index: rows[index])
    assert (list(range(len(rows))) if order is None else order.tolist()) == expected


def test_tokens_and_scheduled_are_request_major_in_a_batch():
    batch = to_record_batch(make_tables(num_requests=3, tokens=4), 0)
    assert rows_of(batch, "tokens").field("request").to_pylist() == [0] * 4 + [1] * 4 + [2] * 4
    assert rows_of(batch, "scheduled").field("engine_step").to_pylist() == [0, 1, 2, 3] * 3


def test_the_token_table_is_in_the_batch_without_a_copy():
    batch = to_record_batch(make_tables(), 0)
    tokens = pa.table(batch)["tokens"].chunk(0).flatten()
    assert (
        tokens.field("token_id").buffers()[1].address == rows_of(batch, "tokens").field("token_id").buffers()[1].address
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda tables: tables.update(nonsense={}), "no such table"),
        (lambda tables: tables["steps"].pop("kv_usage"), "needs the columns"),
        (lambda tables: tables["steps"].update(kv_usage=np.zeros(1, "f4")), "different lengths"),
        (lambda tables: tables["finishes"].update(reason=[None] * 3), "cannot hold nulls"),
    ],
)
def test_malformed_tables_are_refused(change, text):
    tables = make_tables()
    change(tables)
    with pytest.raises(ValueError, match=text):
        to_record_batch(tables, 0)


def test_a_value_too_large_for_its_column_is_refused_not_wrapped():
    tables = make_tables()
    tables["tokens"]["token_id"] = np.full(24, 2**33, "i8")
    with pytest.raises(pa.ArrowInvalid):
        to_record_batch(tables, 0)


def test_any_changed_value_fails_its_checksum():
    batch = to_record_batch(make_tables(), 0)
    meta = from_metadata(to_metadata(batch, BatchMeta(0, "id", 1)), "here")
    structs = {name: rows_of(batch, name) for name in meta.rows}
    verify(batch_of_structs(structs), meta, "here")
    for name in meta.rows:
        rows = rows_of(batch, name)
        for index, column in enumerate(rows.type):
            arrays = rows.flatten()
            arrays[index] = arrays[index].take(pa.array([*range(1, len(rows)), 0]))
            if arrays[index].equals(rows.field(index)):
                continue
            changed = pa.StructArray.from_arrays(arrays, fields=list(rows.type))
            with pytest.raises(TraceCorruptError, match=f"table {name} of here"):
                verify(batch_of_structs(structs | {name: changed}), meta, "here")
            assert column.name != "engine"


def test_a_null_is_not_a_zero_to_the_checksum():
    tables = make_tables(num_requests=1, tokens=1)
    tables["tokens"]["rank"] = np.ma.masked_array(np.zeros(1, "u4"), mask=[True])
    meta = from_metadata(to_metadata(to_record_batch(tables, 0), BatchMeta(0, "id", 1)), "here")
    tables["tokens"]["rank"] = np.zeros(1, "u4")
    with pytest.raises(TraceCorruptError):
        verify(to_record_batch(tables, 0), meta, "here")


@pytest.mark.parametrize(
    ("column", "written", "changed"),
    [
        (
            "prompt_token_ids",
            [np.array([1, 2], "u4"), np.array([3], "u4")],
            [np.array([1], "u4"), np.array([2, 3], "u4")],
        ),
        ("request_id", ["ab", "c"], ["a", "bc"]),
    ],
)
def test_where_one_list_or_text_ends_is_in_the_checksum(column, written, changed):
    tables = make_tables(num_requests=2)
    tables["requests"][column] = written
    meta = from_metadata(to_metadata(to_record_batch(tables, 0), BatchMeta(0, "id", 1)), "here")
    verify(to_record_batch(tables, 0), meta, "here")
    tables["requests"][column] = changed
    with pytest.raises(TraceCorruptError, match="table requests of here"):
        verify(to_record_batch(tables, 0), meta, "here")


def test_a_changed_description_fails_its_checksum():
    batch = to_record_batch({}, 0)
    metadata = to_metadata(batch, BatchMeta(0, "id", 17))
    text = metadata[b"tracekit.batch"]
    for damaged in (
        {},
        metadata | {b"tracekit.batch": text.replace(b"17", b"18")},
        metadata | {b"tracekit.crc": b"xyz"},
    ):
        with pytest.raises(TraceCorruptError, match="batch 17 of a file"):
            from_metadata(damaged, "batch 17 of a file")


def test_request_major_leaves_other_tables_alone():
    rows = rows_of(to_record_batch(make_tables(), 0), "steps")
    assert request_major("steps", rows) is rows
