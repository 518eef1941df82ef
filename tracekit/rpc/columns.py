"""Tables to and from the bytes of a payload: raw little-endian columns in the order of tracekit.tables.

A payload is a run of tables, each at most once and in the order of `WIRE_TABLES`. A table begins with its number (u1)
and its rows (u4), then for each column how its nulls are told (u1: `FULL`, `SOME_NULL`, `ALL_NULL`) and the bytes of
its values (u4). Then come the columns' buffers: a byte per row, 0 for a null (`SOME_NULL` only), a u4 length per row
(text and lists only), the values. An `ALL_NULL` column has none. No names travel: both ends have one schema, as the
hello says.

numpy only, because the recorder imports it inside the engine.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tracekit.errors import TracekitError
from tracekit.tables import TABLES

# table -> column -> values: a numpy array (masked where null) for u1 u4 u8 i8 f4, a list for texts and lists
Tables = dict[str, dict[str, Any]]
Array = npt.NDArray[Any]
Buffer = memoryview

# What a recorder sends: the daemon numbers the engines, and a loss travels as a Loss.
WIRE_TABLES = {
    name: {column: kind for column, kind in columns.items() if column != "engine"}
    for name, columns in TABLES.items()
    if name != "losses"
}

FULL, SOME_NULL, ALL_NULL = 0, 1, 2
LISTS = {"list<u4>": "u4", "list<f4>": "f4"}  # what is in them, of four bytes each

_NAMES = tuple(WIRE_TABLES)
_HEADS = {name: struct.Struct("<BI" + "BI" * len(columns)) for name, columns in WIRE_TABLES.items()}
# of each column its name, its kind without the `?`, whether it may have nulls, the bytes of a value (0: they vary)
_SHAPES = {
    name: [
        (column, kind.rstrip("?"), kind.endswith("?"), 0 if kind[0] in "sl" else int(kind[1]))
        for column, kind in columns.items()
    ]
    for name, columns in WIRE_TABLES.items()
}
_NOTHING = memoryview(b"")
_tuple = tuple.__new__  # a NamedTuple's own constructor takes twice as long, and nearly every column is made here


class Column(NamedTuple):
    """One column as it came: views into the payload, of checked sizes.

    Example:
        Column(FULL, valid=b"", lengths=b"", data=b"\\x01\\0\\0\\0\\x02\\0\\0\\0")
    """

    nulls: int  # FULL, SOME_NULL or ALL_NULL
    valid: Buffer  # [rows] bytes, 0 or 1; empty where not SOME_NULL
    lengths: Buffer  # [rows] u4; of text and lists only
    data: Buffer


class Table(NamedTuple):
    """One table as it came."""

    rows: int
    columns: dict[str, Column]


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
    """Return the payload of `tables`; empty tables are left out.

    Every column of tracekit.tables but `engine` must be there, all of one length; integers of any width are taken
    when they fit.

    Raises:
        TracekitError: an unknown or missing table or column, columns of unequal length, a value out of range.
    """
    if unknown := sorted(tables.keys() - WIRE_TABLES.keys()):
        raise TracekitError(f"there is no table {unknown[0]!r} on the wire")
    parts: list[bytes] = []
    for index, (name, kinds) in enumerate(WIRE_TABLES.items()):
        columns = tables.get(name)
        if columns is None:
            continue
        if odd := sorted(kinds.keys() ^ columns.keys()):
            raise TracekitError(f"table {name} has the wrong columns: {', '.join(odd)}")
        lengths = {len(values) for values in columns.values()}
        if len(lengths) != 1:
            raise TracekitError(f"table {name} has columns of different lengths")
        rows = lengths.pop()
        if rows == 0:
            continue
        try:
            encoded = [_encode(column, kind, columns[column]) for column, kind in kinds.items()]
            shapes = [number for nulls, *_, data in encoded for number in (nulls, len(data))]
            parts.append(_HEADS[name].pack(index, rows, *shapes))
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            raise TracekitError(f"table {name} cannot be packed: {error}") from error
        for _, *buffers in encoded:
            parts += buffers
    return b"".join(parts)


def parse(payload: bytes | Buffer) -> dict[str, Table]:
    """Return the tables of a payload as views into it, trusting nothing in it.

    No length from outside makes it allocate anything.

    Raises:
        TracekitError: an unknown, repeated or empty table, buffers that do not hold exactly the declared rows, nulls
            where none can be, text that is not UTF-8.
    """
    view, at, last = memoryview(payload), 0, -1
    length = len(view)
    tables: dict[str, Table] = {}
    while at < length:
        index = view[at]
        if not last < index < len(_NAMES):
            raise TracekitError("its tables are unknown, doubled or out of order")
        last, name = index, _NAMES[index]
        head = _HEADS[name]
        if at + head.size > length:
            raise TracekitError(f"table {name} is cut off")
        _, rows, *shapes = head.unpack_from(view, at)
        at += head.size
        if not rows:
            raise TracekitError(f"table {name} is there without rows")
        columns = {}
        for (column, base, nullable, width), nulls, size in zip(_SHAPES[name], shapes[::2], shapes[1::2], strict=True):
            end = at + size
            if width and not nulls and size == rows * width and end <= length:  # nearly all are like this
                columns[column], at = _tuple(Column, (FULL, _NOTHING, _NOTHING, view[at:end])), end
                continue
            try:
                if nulls > ALL_NULL or (nulls and not nullable):
                    raise ValueError("it has nulls that it cannot have")
                columns[column], at = _column(view, at, base, width, rows, nulls, size)
            except ValueError as error:
                raise TracekitError(f"column {name}.{column} is malformed: {error}") from None
        tables[name] = Table(rows, columns)
    return tables


def texts(column: Column, rows: int) -> Iterator[str]:
    """Yield the texts of a str column that was parsed, an empty one for each null."""
    if column.nulls == ALL_NULL:
        yield from [""] * rows
        return
    at, data = 0, bytes(column.data)
    for length in struct.unpack(f"<{rows}I", column.lengths):
        yield data[at : at + length].decode()
        at += length


def _encode(name: str, kind: str, values: Any) -> tuple[int, bytes, bytes, bytes]:
    """Return how the nulls of a column are told, and its three buffers."""
    base, nullable = kind.rstrip("?"), kind.endswith("?")
    if base in LISTS:
        arrays = [_to_array(name, LISTS[base], value) for value in values]
        return FULL, b"", _lengths(arrays), np.concatenate(arrays).tobytes()
    valid = _validity(values)
    if valid and not nullable:
        raise ValueError(f"{name} has a null but is not nullable")
    if valid and not any(valid):
        return ALL_NULL, b"", b"", b""
    nulls = SOME_NULL if valid else FULL
    if base == "str":
        # a lone surrogate in one caller's id must not cost the whole batch
        parts = [b"" if value is None else value.encode("utf-8", "backslashreplace") for value in values]
        return nulls, valid, _lengths(parts), b"".join(parts)
    if valid and isinstance(values, list):
        values = [0 if value is None else value for value in values]
    return nulls, valid, b"", _to_array(name, base, values).tobytes()


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


def _column(view: Buffer, at: int, base: str, width: int, rows: int, nulls: int, size: int) -> tuple[Column, int]:
    """Return the column that begins at `at`, and where it ends."""
    filled = 0 if nulls == ALL_NULL else rows
    if width and size != filled * width:
        raise ValueError(f"it holds {size} bytes for {rows} rows of {base}")
    lengths_at = at + (rows if nulls == SOME_NULL else 0)
    data = lengths_at + (0 if width else filled * 4)
    if data + size > len(view):
        raise ValueError(f"it is cut off, {len(view) - at} bytes are left for {rows} rows")
    column = Column(nulls, view[at:lengths_at], view[lengths_at:data], view[data : data + size])
    if nulls == SOME_NULL and np.frombuffer(column.valid, dtype="u1").max() > 1:
        raise ValueError("its validity is not one byte, 0 or 1, for each row")
    if not width:
        _check_parts(column, base)
    return column, data + size


def _check_parts(column: Column, base: str) -> None:
    # exact: there are fewer than 2^26 lengths of less than 2^32
    total = _sum(column.lengths) * (1 if base == "str" else 4)
    if total != len(column.data):
        raise ValueError(f"its lengths add up to {total} bytes of {len(column.data)}")
    if base in LISTS:
        return
    text = bytes(column.data)
    if not text.isascii():
        text.decode()  # together the texts are UTF-8; each is where none begins inside a character
        starts = np.cumsum(np.frombuffer(column.lengths, dtype="<u4"), dtype=np.int64)
        first = np.frombuffer(text, dtype="u1")[starts[starts < total]]
        if ((first & 0xC0) == 0x80).any():
            raise ValueError("a text begins inside a character")


def _sum(lengths: Buffer) -> int:
    if len(lengths) <= 128:  # numpy takes longer to begin
        return sum(struct.unpack(f"<{len(lengths) // 4}I", lengths))
    return int(np.frombuffer(lengths, dtype="<u4").sum(dtype=np.uint64))
