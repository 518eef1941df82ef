"""One batch: numpy tables to an Arrow record batch and back."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from tracekit.tables import TABLES
from tracekit.trace.schema import arrow_schema, row_type

# numpy array (masked where nullable), or a list for str and lists; None where every row of it is null
Column: TypeAlias = Any
Tables: TypeAlias = Mapping[str, Mapping[str, Column]]

# Neighbours in a request resemble each other, so this order is what makes the columns small.
REQUEST_MAJOR = {
    "tokens": ("request", "position"),
    "topk": ("request", "position"),
    "prompt_logprobs": ("request", "position"),
    "prompt_topk": ("request", "position"),
    "scheduled": ("request", "engine_step"),
    "cache": ("request", "engine_step"),
    "requests": ("request",),
    "finishes": ("request",),
}


@dataclass(frozen=True)
class BatchMeta:
    """What a batch says about itself, and its producer's counters up to and including it.

    Example:
        BatchMeta(engine=0, engine_id="9f…", seq=7, produced={"tokens": 4096}, lost={}, last=False)
    """

    engine: int  # number of the engine in this trace
    engine_id: str
    seq: int  # hot: the wire's number, the last one in it, from 1; sealed: number of the batch in the file, from 1
    produced: dict[str, int] = field(default_factory=dict)  # rows by table since the engine started
    lost: dict[str, int] = field(default_factory=dict)  # of these, never sent
    last: bool = False  # the engine said goodbye
    idle: bool = False  # sealed: it did not, but was idle: everything was told
    of: int = 0  # sealed: batches in the file; 0 in a hot one
    seqs: tuple[tuple[int, int], ...] = ()  # sealed: runs of the wire's numbers that the whole trace holds
    ends: tuple[Mapping[str, Any], ...] = ()  # sealed: the counters at both ends of each of `seqs`, see `runs.Run`
    end: int = 0  # sealed: the last of the wire's numbers that is known to have been, 0 where it is the last of `seqs`
    notes: tuple[str, ...] = ()  # sealed: what the disk did while it was recorded, and lost nothing by
    nonce: str = ""  # hot: of the spool
    first_seq: int = 0  # hot: the first of the wire's numbers in it; 0: `seq` is the only one
    rows: dict[str, int] = field(default_factory=dict)  # rows by table in this batch; filled by `to_metadata`
    crcs: dict[str, int] = field(default_factory=dict)  # checksum by table of the decoded values

    @property
    def first(self) -> int:
        """The first of the wire's numbers in a hot batch."""
        return self.first_seq or self.seq


def to_record_batch(tables: Tables, engine: int) -> pa.RecordBatch:
    """Build the one-row record batch of numpy tables.

    Args:
        tables: Table name to column name to values, as in `tracekit.tables`; a missing table is empty.
        engine: What the `engine` column of every table is filled with.

    Raises:
        ValueError: unknown table or column, or columns of different lengths.
        pa.ArrowInvalid: a value does not fit its column.
    """
    if unknown := set(tables) - set(TABLES):
        raise ValueError(f"no such table: {', '.join(sorted(unknown))}")
    return batch_of_structs({name: _struct_array(name, columns, engine) for name, columns in tables.items()})


def batch_of_structs(structs: Mapping[str, pa.StructArray]) -> pa.RecordBatch:
    """Wrap one struct array a table into the one-row batch; missing tables are empty."""
    schema = arrow_schema()
    arrays = []
    for name in schema.names:
        rows = structs.get(name)
        arrays.append(_empty_cell(name) if rows is None else _cell(name, rows))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _cell(table: str, rows: pa.StructArray) -> pa.ListArray:
    offsets = pa.array([0, len(rows)], pa.int32())
    return pa.ListArray.from_arrays(offsets, rows, type=arrow_schema().field(table).type)


@functools.cache
def _empty_cell(table: str) -> pa.ListArray:
    return _cell(table, pa.array([], row_type(table)))


def rows_of(batch: pa.RecordBatch, table: str) -> pa.StructArray:
    """Return the rows of one table of a batch, without a copy."""
    return batch.column(table).flatten()


def widened(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch, or some tables of it, with every table and column of the present schema, empty where it lacks."""
    return batch_of_structs({name: _widened(name, rows_of(batch, name)) for name in batch.schema.names})


def _widened(table: str, rows: pa.StructArray) -> pa.StructArray:
    now = row_type(table)
    if rows.type == now:
        return rows
    there = {field.name: rows.field(field.name) for field in rows.type}
    arrays = [there[field.name] if field.name in there else pa.nulls(len(rows), field.type) for field in now]
    return pa.StructArray.from_arrays(arrays, fields=list(now))


def request_major(table: str, rows: pa.StructArray) -> pa.StructArray:
    """Return the rows in the order that compresses best (and is read most); other tables as they are."""
    if table not in REQUEST_MAJOR or len(rows) < 2:
        return rows
    order = sort_order([rows.field(name) for name in ("engine", *REQUEST_MAJOR[table])])
    return rows if order is None else rows.take(pa.array(order))


def sort_order(keys: Iterable[Any]) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Return the stable order by unsigned keys, the most significant first; None when they are in order already."""
    columns = [column for key in keys if len(column := np.asarray(key)) and (column != column[0]).any()]
    if len(columns) > 1 and columns[-1].itemsize == columns[-2].itemsize == 4:
        # rows come as sorted runs, which a merge sort of one wide key exploits: three times faster than lexsort
        columns[-2:] = [columns[-2].astype(np.uint64) << np.uint64(32) | columns[-1]]
    if not columns or (len(columns) == 1 and (columns[0][:-1] <= columns[0][1:]).all()):
        return None
    return np.argsort(columns[0], kind="stable") if len(columns) == 1 else np.lexsort(columns[::-1])


def _struct_array(table: str, columns: Mapping[str, Column], engine: int) -> pa.StructArray:
    kinds = TABLES[table]
    given = {name for name in columns if name != "engine"}
    if given != set(kinds) - {"engine"}:
        raise ValueError(f"table {table} needs the columns {', '.join(kinds)}, got {', '.join(columns)}")
    lengths = {len(columns[name]) for name in given if columns[name] is not None}
    if len(lengths) != 1:
        raise ValueError(f"table {table} has columns of different lengths")
    count = lengths.pop()
    full = {**columns, "engine": np.full(count, engine, np.uint32)}
    struct = row_type(table)
    arrays = [_array(full[name], kinds[name], struct.field(name).type, count) for name in kinds]
    return request_major(table, pa.StructArray.from_arrays(arrays, fields=list(struct)))


def _array(values: Column, kind: str, target: pa.DataType, count: int) -> pa.Array:
    if values is None and kind.endswith("?"):
        return pa.nulls(count, target)
    if kind.startswith("list"):
        dtype = np.dtype(target.value_type.to_pandas_dtype())
        flat = [np.asarray(item, dtype) for item in values]
        offsets = np.zeros(len(flat) + 1, np.int32)
        np.cumsum([len(item) for item in flat], out=offsets[1:])
        joined = np.concatenate(flat) if flat else np.zeros(0, dtype)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(joined), type=target)
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        array = pa.array(values.filled(0), mask=mask if mask.any() else None)
    else:
        array = pa.array(values, target) if isinstance(values, list) else pa.array(np.asarray(values))
    if array.null_count and not kind.endswith("?"):
        raise ValueError(f"a column of type {kind} cannot hold nulls")
    return array.cast(target)
