"""Received batches to one record batch: buffers are joined and handed to Arrow, no value is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute

from tracekit.rpc.columns import ALL_NULL, LISTS, SOME_NULL, WIRE_TABLES, Column, Table
from tracekit.trace.batch import BatchMeta, batch_of_structs, request_major
from tracekit.trace.ledger import loss_table
from tracekit.trace.schema import row_type
from tracekitd.intake import Received


def to_record_batch(received: Sequence[Received]) -> tuple[pa.RecordBatch, BatchMeta]:
    """Make one record batch of consecutive batches of one engine; it stands for all their numbers."""
    last = received[-1].meta
    if len(received) > 1:
        last = replace(last, first_seq=received[0].meta.seq)
    structs = {}
    for name in WIRE_TABLES:
        if tables := [one.tables[name] for one in received if name in one.tables]:
            structs[name] = request_major(name, _struct(name, tables, last.engine))
    if losses := [loss for one in received for loss in one.losses]:
        table = loss_table(replace(loss, engine=last.engine) for loss in losses)
        structs["losses"] = table.to_struct_array().combine_chunks()
    return batch_of_structs(structs), last


def _struct(name: str, tables: Sequence[Table], engine: int) -> pa.StructArray:
    rows = [table.rows for table in tables]
    kind = row_type(name)
    arrays = [pa.array(np.full(sum(rows), engine, np.uint32))]
    for column, wire_kind in WIRE_TABLES[name].items():
        parts = [table.columns[column] for table in tables]
        arrays.append(_array(kind.field(column).type, wire_kind.rstrip("?"), parts, rows))
    return pa.StructArray.from_arrays(arrays, fields=list(kind))


def _array(target: pa.DataType, base: str, parts: Sequence[Column], rows: Sequence[int]) -> pa.Array:
    num_rows = sum(rows)
    nulls, _, lengths, values = zip(*parts, strict=True)
    width = 0 if base == "str" or base in LISTS else int(base[1:])
    valid = None
    if any(nulls):
        if set(nulls) == {ALL_NULL}:
            return pa.nulls(num_rows, target)
        flags = b"".join(_valid(part, count) for part, count in zip(parts, rows, strict=True))
        valid = pa.py_buffer(np.packbits(np.frombuffer(flags, "u1"), bitorder="little"))
        values = tuple(part.data or bytes(width * n) for part, n in zip(parts, rows, strict=True))
        lengths = tuple(part.lengths or bytes(4 * n) for part, n in zip(parts, rows, strict=True))
    data = pa.py_buffer(b"".join(values))
    if width:
        return pa.Array.from_buffers(target, num_rows, [valid, data])
    offsets = np.zeros(num_rows + 1, np.int32)
    np.cumsum(np.frombuffer(b"".join(lengths), "<u4"), out=offsets[1:])
    if base == "str":
        return pa.Array.from_buffers(target, num_rows, [valid, pa.py_buffer(offsets), data])
    items = pa.Array.from_buffers(target.value_type, data.size // 4, [None, data])
    return pa.Array.from_buffers(target, num_rows, [valid, pa.py_buffer(offsets)], children=[items])


def _valid(part: Column, rows: int) -> bytes:
    if part.nulls == SOME_NULL:
        return bytes(part.valid)
    return bytes([part.nulls != ALL_NULL]) * rows
