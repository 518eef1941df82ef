"""Read a sealed trace: an Arrow IPC file in which every batch proves itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tracekit.errors import (
    DamagedFooterError,
    NotArrowError,
    TraceCorruptError,
    TraceTruncatedError,
    UnreadableTraceError,
)
from tracekit.tables import SCHEMA_VERSION
from tracekit.trace.batch import BatchMeta, widened
from tracekit.trace.durable import OpenFile
from tracekit.trace.proof import from_metadata, verify
from tracekit.trace.schema import SEAL_KEY, check_schema, fields_of
from tracekit.trace.segments import DAMAGE
from tracekit.trace.weigh import blocks, too_heavy

MAGIC = b"ARROW1"


@dataclass(frozen=True)
class SealedBatch:
    """A batch of a sealed trace; what it says about itself is verified, its rows are when they are loaded."""

    file: SealedFile
    meta: BatchMeta

    def load(self, tables: Sequence[str] | None = None) -> pa.RecordBatch:
        """Read and verify the named tables of the batch (all of them by default).

        Raises:
            TraceCorruptError: anything in them differs from what was written.
        """
        return self.file.read(self.meta.seq - 1, tables)[0]


class SealedFile:
    """A sealed trace on the disk."""

    def __init__(self, path: Path, name: str | None = None) -> None:
        """Open the file and verify its frame: magic at both ends, schema, number and order of the batches.

        Args:
            path: of the file.
            name: what errors call it, where it is a copy of something; the path by default.

        Raises:
            NotATraceError, SchemaTooNewError, TraceTruncatedError, TraceCorruptError, TraceError
        """
        self.path = path
        self.name = name or str(path)
        self._file = _check_ends(path, self.name)
        self.schema_version = SCHEMA_VERSION
        reader = self._open(None)
        self.schema_version = check_schema(reader.schema, self.name)
        try:
            count = reader.num_record_batches
            self._blocks = blocks(self._file.read, self._file.size)
            if count != len(self._blocks):
                raise ValueError("two numbers of batches")
            if count == 0:
                _check_empty(self._file.path)
        except DAMAGE:
            raise DamagedFooterError(self.name) from None
        self.seal = (reader.schema.metadata or {}).get(SEAL_KEY, b"").decode("utf-8", "replace")
        self._metas = [self.read(index, ["engines"])[1] for index in range(count)]
        if any(meta.of != count for meta in self._metas):
            told = "1 batch" if count == 1 else f"{count} batches"
            raise TraceCorruptError(f"the footer tells of {told}, the batches of another number: {self.name}")

    @property
    def batches(self) -> list[SealedBatch]:
        """The batches in order; not kept, so that a file nobody holds is closed at once."""
        return [SealedBatch(self, meta) for meta in self._metas]

    def read(self, index: int, tables: Sequence[str] | None) -> tuple[pa.RecordBatch, BatchMeta]:
        """Read and verify the named tables of one batch, counted from 0, and what it says about itself."""
        where = f"batch {index + 1} of {self.name}"
        try:
            if too_heavy(self._file.read, *self._blocks[index]):
                raise TraceCorruptError(f"{where} claims more memory than it can need")
            read = self._open(tables).get_batch_with_custom_metadata(index)
            batch, metadata = read.batch, dict(read.custom_metadata or {})
        except DAMAGE:
            raise TraceCorruptError(f"{where} is damaged") from None
        meta = from_metadata(metadata, where)
        if meta.seq != index + 1:
            raise TraceCorruptError(f"{where} says that it is batch {meta.seq}")
        verify(batch, meta, where)
        return (batch if self.schema_version == SCHEMA_VERSION else widened(batch)), meta

    def _open(self, tables: Sequence[str] | None) -> pa.RecordBatchFileReader:
        fields = fields_of(self.schema_version, tables)
        try:
            # not a memory map: a file that shrinks under one kills the process
            source = pa.OSFile(self._file.path, "rb")
            return pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=fields))
        except DAMAGE:
            raise DamagedFooterError(self.name) from None


def _check_ends(path: Path, name: str) -> OpenFile:
    try:
        file = OpenFile(path)
        head = file.read(0, len(MAGIC) + 2)
        tail = file.read(max(file.size - len(MAGIC), 0), len(MAGIC))
    except OSError as error:
        raise UnreadableTraceError(name, error) from None
    if not head or not head.startswith(MAGIC[: len(head)]):
        raise NotArrowError(name)
    if tail != MAGIC or file.size <= len(head) + len(MAGIC):
        raise TraceTruncatedError(f"the trace ends before its own end, after {file.size} bytes: {name}")
    return file


def _check_empty(path: str) -> None:
    """Make sure that no batch follows the schema, whatever the footer says."""
    with pa.OSFile(path, "rb") as source:
        source.seek(len(MAGIC) + 2)
        if sum(1 for _ in pa.ipc.open_stream(source)):
            raise pa.ArrowInvalid("the footer hides batches")
