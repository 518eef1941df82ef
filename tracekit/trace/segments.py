"""Read hot segments: every whole and verified batch of an Arrow IPC stream, whatever happened to the rest of it."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tracekit.errors import NotArrowError, TraceCorruptError, UnreadableTraceError
from tracekit.tables import SCHEMA_VERSION
from tracekit.trace.batch import BatchMeta, widened
from tracekit.trace.proof import from_metadata, verify
from tracekit.trace.schema import arrow_schema, check_schema, fields_of

SUFFIX = ".arrows"
LOCK_NAME = "lock"
_MARKER = b"\xff\xff\xff\xff"
_END = _MARKER + b"\0\0\0\0"
_MAX_HEADER = 64 << 20
# what pyarrow raises on damaged bytes; MemoryError because lengths are among the bytes
DAMAGE = (pa.ArrowException, OSError, EOFError, ValueError, KeyError, MemoryError, OverflowError)


@dataclass(frozen=True)
class HotBatch:
    """A good batch and where it lies."""

    path: Path
    offset: int
    length: int
    meta: BatchMeta
    schema_version: int = SCHEMA_VERSION

    def load(self, tables: Sequence[str] | None = None) -> pa.RecordBatch:
        """Read the named tables of the batch again from the disk (all of them by default) and verify them.

        Raises:
            TraceCorruptError: the bytes are not those of a moment ago.
        """
        where = f"batch {self.meta.seq} of engine {self.meta.engine} in {self.path}"
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                message = file.read(self.length)
            return _decode(message, where, self.schema_version, tables)[0]
        except DAMAGE:
            raise TraceCorruptError(f"{where} changed or vanished while it was being read") from None


@dataclass(frozen=True)
class Damage:
    """Bytes that hold no good batch."""

    path: Path
    offset: int
    length: int
    at_end: bool  # nothing good follows: a torn write, which a crash leaves

    def __str__(self) -> str:
        kind = "torn tail" if self.at_end else "damaged"
        return f"{kind}: {self.length} bytes at offset {self.offset} of {self.path.name}"


def segment_paths(folder: Path) -> list[Path]:
    """Return the hot segments of a spool folder in the order they were written."""
    return sorted(folder.glob(f"hot-*{SUFFIX}"))


def is_live(folder: Path) -> bool:
    """Say whether a writer holds the spool right now."""
    try:
        with open(folder / LOCK_NAME, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


def scan(path: Path) -> Iterator[HotBatch | Damage]:
    """Walk a segment as it is now: its good batches in order, and each run of damaged bytes.

    The segment is held in memory (they roll over at 64 MiB). Every batch is decoded and checked.

    Raises:
        NotATraceError: it does not start as a trace does.
        SchemaTooNewError: a newer tracekit wrote it.
        TraceError: it cannot be read at all.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableTraceError(path, error) from None
    if data[:4] != _MARKER[: len(data)]:
        raise NotArrowError(path, "stream")
    position, version = _after_schema(data, path)
    while position < len(data):
        found = None if data.startswith(_END, position) else _batch_at(data, position, path, version)
        if found is None:
            if data.startswith(_END, position) and position + len(_END) == len(data):
                return
            found = _next_batch(data, position + 1, path, version)
            until = found.offset if found else len(data)
            yield Damage(path, position, until - position, at_end=found is None)
            if found is None:
                return
        yield found
        position = found.offset + found.length


def _after_schema(data: bytes, path: Path) -> tuple[int, int]:
    reader = pa.BufferReader(data)
    try:
        schema = pa.ipc.read_schema(reader)
    except DAMAGE:
        return 0, SCHEMA_VERSION  # torn or damaged: what follows, if anything, proves itself
    version = check_schema(schema, str(path))
    end = int(reader.tell())
    # a flipped bit in the schema's length would skip whole batches
    return (end if end == len(data) or data.startswith(_MARKER, end) else 0), version


def _batch_at(data: bytes, position: int, path: Path, version: int) -> HotBatch | None:
    """Return the good batch that starts at `position`, if one does."""
    end = _message_end(data, position)
    if end is None:
        return None
    try:
        _, meta = _decode(data[position:end], f"the batch at {position}", version)
    except (*DAMAGE, TraceCorruptError):
        return None
    return HotBatch(path, position, end - position, meta, version)


def _next_batch(data: bytes, position: int, path: Path, version: int) -> HotBatch | None:
    while (position := data.find(_MARKER, position)) >= 0:
        if found := _batch_at(data, position, path, version):
            return found
        position += 1
    return None


def _message_end(data: bytes, position: int) -> int | None:
    header = int.from_bytes(data[position + 4 : position + 8], "little")
    if data[position : position + 4] != _MARKER or not 0 < header <= min(_MAX_HEADER, len(data) - position):
        return None
    reader = pa.BufferReader(pa.py_buffer(data).slice(position))
    try:
        message = pa.ipc.read_message(reader)
        return position + int(reader.tell()) if message.type == "record batch" else None
    except DAMAGE:
        return None


def _decode(
    message: bytes, where: str, version: int, tables: Sequence[str] | None = None
) -> tuple[pa.RecordBatch, BatchMeta]:
    # our own schema in front: a flipped bit in the file's schema must not change what the bytes mean
    schema = arrow_schema(version)
    stream = pa.BufferReader(schema.serialize().to_pybytes() + message)
    # a hot batch is too small to share out to threads
    options = pa.ipc.IpcReadOptions(included_fields=fields_of(version, tables), use_threads=False)
    batch, metadata = pa.ipc.open_stream(stream, options=options).read_next_batch_with_custom_metadata()
    meta = from_metadata(dict(metadata or {}), where)
    verify(batch, meta, where)
    return (batch if version == SCHEMA_VERSION else widened(batch)), meta


def truncate_torn_tail(path: Path, damage: Damage) -> None:
    """Cut what a crash left behind the last good batch, durably.

    Raises:
        OSError: the disk refused.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, damage.offset)
        os.fsync(fd)
    finally:
        os.close(fd)
