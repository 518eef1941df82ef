"""One batch: numpy tables to an Arrow record batch and back, with the checksums that Arrow itself lacks."""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa

from tracekit.errors import ChecksumError
from tracekit.tables import TABLES
from tracekit.trace.schema import arrow_schema, row_type

Column: TypeAlias = Any  # numpy array (masked where nullable), or a list for str and list<u4>
Tables: TypeAlias = Mapping[str, Mapping[str, Column]]

META_KEY = b"tracekit.batch"
CRC_KEY = b"tracekit.crc"

# Neighbours in a request resemble each other, so this order is what makes the columns small.
REQUEST_MAJOR = {
    "tokens": ("request", "position"),
    "topk": ("request", "position"),
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
    seq: int  # hot: the wire's number, from 1; sealed: number of the batch in the file, from 1
    produced: dict[str, int] = field(default_factory=dict)  # rows by table since the engine started
    lost: dict[str, int] = field(default_factory=dict)  # of these, never sent
    last: bool = False  # the engine said goodbye
    of: int = 0  # sealed: batches in the file; 0 in a hot one
    seqs: tuple[tuple[int, int], ...] = ()  # sealed: runs of the wire's numbers that the whole trace holds
    rows: dict[str, int] = field(default_factory=dict)  # rows by table in this batch; filled by `seal_meta`
    crcs: dict[str, int] = field(default_factory=dict)  # checksum by table of the decoded values


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


def to_metadata(batch: pa.RecordBatch, meta: BatchMeta) -> dict[bytes, bytes]:
    """Return the custom metadata of the batch's message: the meta with rows and checksums filled in, and its CRC."""
    facts = asdict(meta) | {"rows": {}, "crcs": {}}
    for name in batch.schema.names:
        rows = rows_of(batch, name)
        if len(rows):
            facts["rows"][name] = len(rows)
            facts["crcs"][name] = checksum(rows)
    text = json.dumps(facts, separators=(",", ":"), sort_keys=True).encode()
    return {META_KEY: text, CRC_KEY: b"%08x" % zlib.crc32(text)}


def from_metadata(metadata: Mapping[bytes, bytes] | None, where: str) -> BatchMeta:
    """Read back what `to_metadata` wrote.

    Raises:
        ChecksumError: it is missing or its checksum does not match.
    """
    try:
        text = (metadata or {})[META_KEY]
        if int((metadata or {})[CRC_KEY], 16) == zlib.crc32(text):
            facts = json.loads(text)
            return BatchMeta(**(facts | {"seqs": tuple((first, last) for first, last in facts["seqs"])}))
    except (KeyError, ValueError, TypeError):
        pass
    raise ChecksumError(f"the description of {where}")


def verify(batch: pa.RecordBatch, meta: BatchMeta, where: str) -> None:
    """Make sure that every table present in `batch` holds exactly what was written.

    Raises:
        ChecksumError: anything differs; the text names `where` and the table.
    """
    for name in batch.schema.names:
        try:
            column = batch.column(name)
            column.validate(full=True)
            rows = column.flatten()
            good = len(column) == 1 and len(rows) == meta.rows.get(name, 0)
            good = good and (len(rows) == 0 or checksum(rows) == meta.crcs.get(name))
        except (pa.ArrowException, ValueError):
            good = False
        if not good:
            raise ChecksumError(f"table {name} of {where}")


def checksum(rows: pa.StructArray) -> int:
    """Return the CRC-32 of the decoded values, which does not depend on how Arrow laid them out."""
    crc = zlib.crc32(b"%d" % len(rows))
    for index in range(rows.type.num_fields):
        crc = _crc_of(rows.field(index), crc)
    return crc


def _crc_of(array: pa.Array, crc: int) -> int:
    if array.null_count:
        crc = zlib.crc32(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).data, crc)
        array = array.fill_null("" if pa.types.is_string(array.type) else 0)
    if pa.types.is_list(array.type):
        crc = zlib.crc32(array.value_lengths().to_numpy().data, crc)
        return zlib.crc32(array.flatten().to_numpy().data, crc)
    if pa.types.is_string(array.type):
        _, offsets, data = array.buffers()
        bounds = (
            np.frombuffer(offsets, np.int32, len(array) + 1, array.offset * 4) if offsets else np.zeros(1, np.int32)
        )
        crc = zlib.crc32(np.diff(bounds).data, crc)
        return zlib.crc32(data[bounds[0] : bounds[-1]], crc) if data else crc
    return zlib.crc32(array.to_numpy().data, crc)


def _struct_array(table: str, columns: Mapping[str, Column], engine: int) -> pa.StructArray:
    kinds = TABLES[table]
    given = {name for name in columns if name != "engine"}
    if given != set(kinds) - {"engine"}:
        raise ValueError(f"table {table} needs the columns {', '.join(kinds)}, got {', '.join(columns)}")
    lengths = {len(columns[name]) for name in given}
    if len(lengths) > 1:
        raise ValueError(f"table {table} has columns of different lengths")
    full = {**columns, "engine": np.full(lengths.pop(), engine, np.uint32)}
    struct = row_type(table)
    arrays = [_array(full[name], kinds[name], struct.field(name).type) for name in kinds]
    return request_major(table, pa.StructArray.from_arrays(arrays, fields=list(struct)))


def _array(values: Column, kind: str, target: pa.DataType) -> pa.Array:
    if kind.startswith("list"):
        flat = [np.asarray(item, np.uint32) for item in values]
        offsets = np.zeros(len(flat) + 1, np.int32)
        np.cumsum([len(item) for item in flat], out=offsets[1:])
        joined = np.concatenate(flat) if flat else np.zeros(0, np.uint32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(joined), type=target)
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        array = pa.array(values.filled(0), mask=mask if mask.any() else None)
    else:
        array = pa.array(values, target) if isinstance(values, list) else pa.array(np.asarray(values))
    if array.null_count and not kind.endswith("?"):
        raise ValueError(f"a column of type {kind} cannot hold nulls")
    return array.cast(target)
