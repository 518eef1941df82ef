"""Tables to and from the bytes of a Batch: raw little-endian columns, checked name by name against tracekit.tables.

Numeric columns move as whole buffers; only strings and lists cost Python work per row. numpy and protobuf only,
because the recorder imports it inside the engine.
"""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from tracekit.errors import TracekitError
from tracekit.rpc import messages
from tracekit.tables import TABLES

# table -> column -> values: a numpy array (masked where null) for u1 u4 u8 i8 f4, a list for str, str? and list<u4>
Tables = dict[str, dict[str, Any]]
Array = npt.NDArray[Any]

# What a recorder sends: the daemon numbers the engines, and a loss travels as a Loss.
WIRE_TABLES = {
    name: {column: kind for column, kind in columns.items() if column != "engine"}
    for name, columns in TABLES.items()
    if name != "losses"
}


def count_rows(tables: Tables) -> dict[str, int]:
    """Return table -> number of rows, without the empty tables."""
    counts = {name: len(next(iter(columns.values()), ())) for name, columns in tables.items()}
    return {name: rows for name, rows in counts.items() if rows}


def slice_rows(tables: Tables, start: float, stop: float) -> Tables:
    """Return the rows of every table from `start` to `stop`, both a share of its rows between 0 and 1."""
    rows = {name: len(next(iter(columns.values()), ())) for name, columns in tables.items()}
    return {
        name: {column: values[int(rows[name] * start) : int(rows[name] * stop)] for column, values in columns.items()}
        for name, columns in tables.items()
    }


def pack(tables: Tables) -> bytes:
    """Return `tables` as a serialized `Tables` message; empty tables are left out.

    Every column of tracekit.tables but `engine` must be there, all of one length; integers of any width are taken
    when they fit.

    Raises:
        TracekitError: an unknown or missing table or column, columns of unequal length, a value out of range.
    """
    packed = messages.Tables()
    for name, columns in tables.items():
        kinds = _kinds(name, columns)
        lengths = {len(values) for values in columns.values()}
        if len(lengths) != 1:
            raise TracekitError(f"table {name} has columns of different lengths")
        rows = lengths.pop()
        if rows == 0:
            continue
        try:
            encoded = [_encode(column, kind, columns[column]) for column, kind in kinds.items()]
        except (TypeError, ValueError, OverflowError) as error:
            raise TracekitError(f"table {name} cannot be packed: {error}") from error
        packed.tables.append(messages.Table(name=name, rows=rows, columns=encoded))
    return packed.SerializeToString()


def unpack(payload: bytes) -> Tables:
    """Return the tables of a serialized `Tables` message, trusting nothing in it.

    Numeric arrays are read-only views; a nullable one comes masked if it has nulls.

    Raises:
        TracekitError: not a `Tables` message, an unknown, missing or repeated table or column, a buffer that does not
            hold exactly the declared rows, text that is not UTF-8.
    """
    try:
        packed = messages.Tables.FromString(payload)
    except DecodeError as error:
        raise TracekitError("the payload is not a tracekit.v1.Tables message") from error
    tables: Tables = {}
    for table in packed.tables:
        columns = {column.name: column for column in table.columns}
        kinds = _kinds(table.name, columns)
        if len(columns) != len(table.columns) or table.name in tables:
            raise TracekitError(f"table {table.name} or one of its columns is there twice")
        decoded = {}
        for column, kind in kinds.items():
            try:
                decoded[column] = _decode(kind, table.rows, columns[column])
            except ValueError as error:
                raise TracekitError(f"column {table.name}.{column} is malformed: {error}") from error
        tables[table.name] = decoded
    return tables


def _kinds(name: str, columns: dict[str, Any]) -> dict[str, str]:
    kinds = WIRE_TABLES.get(name)
    if kinds is None:
        raise TracekitError(f"there is no table {name!r} on the wire")
    odd = sorted(kinds.keys() ^ columns.keys())
    if odd:
        raise TracekitError(f"table {name} has the wrong columns: {', '.join(odd)}")
    return kinds


def _encode(name: str, kind: str, values: Any) -> messages.Column:
    base, nullable = kind.rstrip("?"), kind.endswith("?")
    if base == "list<u4>":
        arrays = [_to_array(name, "u4", value) for value in values]
        return messages.Column(name=name, data=np.concatenate(arrays).tobytes(), lengths=_lengths(arrays))
    valid = _validity(values)
    if valid and not nullable:
        raise ValueError(f"{name} has a null but is not nullable")
    if base == "str":
        # a lone surrogate in one caller's id must not cost the whole batch
        parts = [b"" if value is None else value.encode("utf-8", "backslashreplace") for value in values]
        return messages.Column(name=name, data=b"".join(parts), lengths=_lengths(parts), valid=valid)
    if valid and isinstance(values, list):
        values = [0 if value is None else value for value in values]
    return messages.Column(name=name, data=_to_array(name, base, values).tobytes(), valid=valid)


def _validity(values: Any) -> bytes:
    """Return one byte per row, 0 for a null, or nothing where there is none."""
    if isinstance(values, np.ma.MaskedArray):
        mask = np.ma.getmaskarray(values)
        return (~mask).astype("u1").tobytes() if mask.any() else b""
    if isinstance(values, np.ndarray) or all(value is not None for value in values):
        return b""
    return bytes(value is not None for value in values)


def _to_array(name: str, base: str, values: Any) -> Array:
    """Return `values` as a one-dimensional little-endian array of type `base`, with 0 where masked."""
    dtype = np.dtype(f"<{base}")
    if isinstance(values, np.ma.MaskedArray):
        values = values.filled(0)
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} is not one-dimensional")
    if array.dtype == dtype or array.size == 0:
        return array.astype(dtype, copy=False)
    if dtype.kind == "f":
        if array.dtype.kind not in "fiu":
            raise TypeError(f"{name} holds {array.dtype}, not numbers")
    else:
        limits = np.iinfo(dtype)
        if array.dtype.kind not in "iub":
            raise TypeError(f"{name} holds {array.dtype}, not integers")
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise OverflowError(f"{name} holds a value that does not fit {base}")
    return array.astype(dtype)


def _lengths(parts: list[Any]) -> bytes:
    return np.fromiter(map(len, parts), dtype="<u4", count=len(parts)).tobytes()


def _decode(kind: str, rows: int, column: messages.Column) -> Any:
    base, nullable = kind.rstrip("?"), kind.endswith("?")
    valid = _decode_validity(column.valid, rows, nullable)
    if base == "str" or base == "list<u4>":
        values = _decode_parts(base, rows, column)
        return values if valid is None else [value if ok else None for value, ok in zip(values, valid, strict=True)]
    if column.lengths:
        raise ValueError("it has lengths but its values are of one size")
    dtype = np.dtype(f"<{base}")
    if len(column.data) != rows * dtype.itemsize:
        raise ValueError(f"it holds {len(column.data)} bytes for {rows} rows of {base}")
    array = np.frombuffer(column.data, dtype=dtype)
    return array if valid is None else np.ma.MaskedArray(array, mask=~valid)


def _decode_validity(valid: bytes, rows: int, nullable: bool) -> Array | None:
    if not valid:
        return None
    if not nullable:
        raise ValueError("it has nulls but is not nullable")
    flags = np.frombuffer(valid, dtype="u1")
    if len(flags) != rows or flags.max() > 1:
        raise ValueError(f"its validity is not one byte, 0 or 1, for each of {rows} rows")
    return flags.astype(bool)


def _decode_parts(base: str, rows: int, column: messages.Column) -> list[Any]:
    if len(column.lengths) != rows * 4:
        raise ValueError(f"it holds {len(column.lengths)} bytes of lengths for {rows} rows")
    lengths = np.frombuffer(column.lengths, dtype="<u4").tolist()
    size = 1 if base == "str" else 4
    # exact in Python's integers: lengths from outside must not be able to wrap around
    ends = list(accumulate(lengths, initial=0))
    if ends[-1] * size != len(column.data):
        raise ValueError(f"its lengths add up to {ends[-1] * size} bytes of {len(column.data)}")
    if base == "str":
        return [column.data[start:end].decode() for start, end in pairwise(ends)]
    array = np.frombuffer(column.data, dtype="<u4")
    return [array[start:end] for start, end in pairwise(ends)]
