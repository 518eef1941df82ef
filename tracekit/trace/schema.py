"""The Arrow schema of a trace: one row is one batch, every table is one `list<struct>` column of it."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pyarrow as pa

from tracekit import __version__
from tracekit.errors import NotATraceError, SchemaTooNewError
from tracekit.tables import OLDEST_SCHEMA, SCHEMA_VERSION, SINCE, TABLES

VERSION_KEY = b"tracekit.schema_version"
WRITER_KEY = b"tracekit.version"
NONCE_KEY = b"tracekit.nonce"
SEAL_KEY = b"tracekit.seal"

_TYPES = {
    "u1": pa.uint8(),
    "u4": pa.uint32(),
    "u8": pa.uint64(),
    "i8": pa.int64(),
    "f4": pa.float32(),
    "str": pa.string(),
    "list<u4>": pa.list_(pa.field("item", pa.uint32(), nullable=False)),
    "list<f4>": pa.list_(pa.field("item", pa.float32(), nullable=False)),
}


def arrow_field(name: str, kind: str) -> pa.Field:
    """Return the Arrow field of a column written as in `tracekit.tables`, such as `"f4?"`."""
    return pa.field(name, _TYPES[kind.removesuffix("?")], nullable=kind.endswith("?"))


@functools.cache
def row_type(table: str, version: int = SCHEMA_VERSION) -> pa.StructType:
    """Return the struct type of one row of `table`, or what it was at that version."""
    kinds = TABLES[table].items()
    return pa.struct([arrow_field(name, kind) for name, kind in kinds if _was_in(f"{table}.{name}", version)])


@functools.cache
def row_schema(table: str) -> pa.Schema:
    """Return the schema of `table` as a flat table of its own."""
    return pa.schema(list(row_type(table)))


@functools.cache
def arrow_schema(version: int = SCHEMA_VERSION) -> pa.Schema:
    """Return the schema of every hot segment and sealed trace that this tracekit writes, or one did at that version."""
    fields = [
        pa.field(table, pa.list_(pa.field("item", row_type(table, version), nullable=False)), nullable=False)
        for table in TABLES
        if _was_in(table, version)
    ]
    return pa.schema(fields, metadata={VERSION_KEY: str(version), WRITER_KEY: __version__})


def _was_in(name: str, version: int) -> bool:
    return SINCE.get(name, OLDEST_SCHEMA) <= version


@functools.lru_cache(maxsize=8)
def spool_schema(nonce: str) -> pa.Schema:
    """Return the schema of the hot segments of one spool."""
    return _marked(NONCE_KEY, nonce)


def sealed_schema(seal: str) -> pa.Schema:
    """Return the schema of one sealed trace, which tells of which sealing it is."""
    return _marked(SEAL_KEY, seal) if seal else arrow_schema()


def _marked(key: bytes, value: str) -> pa.Schema:
    schema = arrow_schema()
    return schema.with_metadata({**(schema.metadata or {}), key: value.encode()})


def fields_of(version: int, tables: Sequence[str] | None) -> list[int] | None:
    """Return where the named tables lie in a trace of that version, of those it has; None: all are meant."""
    names = arrow_schema(version).names
    return [names.index(name) for name in tables if name in names] if tables else None


def check_schema(schema: pa.Schema, where: str) -> int:
    """Return the schema version of a trace, after making sure that this tracekit can read it.

    Raises:
        NotATraceError: the schema is not that of a trace.
        SchemaTooNewError: a newer tracekit wrote it.
    """
    try:
        version = int((schema.metadata or {})[VERSION_KEY])
    except (KeyError, ValueError):
        made = b"tracekit.result" in (schema.metadata or {})
        hint = " (it is a replay, which `tracekit report` and `tracekit check` take)" if made else ""
        raise NotATraceError(f"this is Arrow, but not a trace of tracekit{hint}: {where}") from None
    if version > SCHEMA_VERSION:
        raise SchemaTooNewError(
            f"this trace has schema {version} and this tracekit reads up to {SCHEMA_VERSION}, get a newer one: {where}"
        )
    if version < OLDEST_SCHEMA:
        raise NotATraceError(f"this trace has schema {version}, which was never released; record it again: {where}")
    if not schema.equals(arrow_schema(version), check_metadata=False):
        raise NotATraceError(f"the columns are not those of trace schema {version}: {where}")
    return version
