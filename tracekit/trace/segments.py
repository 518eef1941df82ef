"""Read hot segments: every whole and verified batch of an Arrow IPC stream, whatever happened to the rest of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import pyarrow as pa

from tracekit.errors import NotArrowError, TraceCorruptError, TraceError, UnreadableTraceError
from tracekit.tables import SCHEMA_VERSION
from tracekit.trace.batch import BatchMeta, rows_of, widened
from tracekit.trace.durable import OpenFile
from tracekit.trace.ledger import Loss
from tracekit.trace.proof import from_metadata, verify
from tracekit.trace.runs import Taken
from tracekit.trace.schema import NONCE_KEY, arrow_schema, check_schema, fields_of
from tracekit.trace.weigh import too_heavy

SUFFIX = ".arrows"
_NAME = re.compile(r"hot-(\d{6,18})\.arrows")
_MARKER = b"\xff\xff\xff\xff"
_SEALED_START = 8  # behind the magic
_END = _MARKER + b"\0\0\0\0"
_MAX_HEADER = 64 << 20
# what pyarrow raises on damaged bytes; MemoryError because lengths are among the bytes
DAMAGE = (pa.ArrowException, OSError, EOFError, ValueError, KeyError, MemoryError, OverflowError)


class Described(Protocol):
    """Anything that has the description of a batch."""

    @property
    def meta(self) -> BatchMeta:
        """What the batch says of itself."""


Batch = TypeVar("Batch", bound=Described)


@dataclass(frozen=True)
class HotBatch:
    """A good batch and where it lies; its file stays open, so that it can be read after the writer has removed it."""

    path: Path
    offset: int
    length: int
    meta: BatchMeta
    file: OpenFile
    schema_version: int = SCHEMA_VERSION

    def load(self, tables: Sequence[str] | None = None) -> pa.RecordBatch:
        """Read the named tables of the batch again from the disk (all of them by default) and verify them.

        Raises:
            TraceCorruptError: the bytes are not those of a moment ago.
        """
        where = f"batch {self.meta.seq} of engine {self.meta.engine} in {self.path}"
        try:
            return _decode(self.message(), where, self.schema_version, tables)[0]
        except DAMAGE:
            raise TraceCorruptError(f"{where} changed or vanished while it was being read") from None

    def message(self) -> bytes:
        """Return the bytes of the batch's Arrow message.

        Raises:
            OSError: the disk refused.
        """
        return self.file.read(self.offset, self.length)


@dataclass(frozen=True)
class Damage:
    """Bytes that hold no good batch, or a file that is not there at all."""

    path: Path
    offset: int
    length: int
    at_end: bool  # nothing good follows: a torn write, which a crash leaves
    what: str = ""  # of a whole file: what is wrong with it
    told: bool = False  # the index knows which batches were there, so what is missing of them shows by itself

    def known(self) -> Damage:
        """Return it as damage of a spool whose index is whole."""
        return replace(self, told=True)

    def __str__(self) -> str:
        if self.what:
            return f"damaged: {self.path.name} {self.what}"
        kind = "torn tail" if self.at_end else "damaged"
        return f"{kind}: {self.length} bytes at offset {self.offset} of {self.path.name}"


def segment_name(number: int) -> str:
    """Return the name of a hot segment."""
    return f"hot-{number:06d}{SUFFIX}"


def segment_number(name: str) -> int | None:
    """Return the number in the name of a hot segment; None where it is another name."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def part_name(first: int, last: int) -> str:
    """Return the name of a part that was sealed of these hot segments."""
    return f"part-{first:06d}-{last:06d}.arrow"


def last_of_part(name: str) -> int | None:
    """Return the number of the last segment in the name of a part; None where it is another name."""
    found = re.fullmatch(r"part-\d{6,18}-(\d{6,18})\.arrow", name)
    return int(found[1]) if found else None


def segment_paths(folder: Path) -> list[Path]:
    """Return what is called as hot segments are, in the order they were written."""
    found = {path: segment_number(path.name) for path in folder.iterdir()}
    return [path for path, number in sorted(found.items(), key=lambda pair: pair[1] or 0) if number is not None]


def scan(path: Path) -> Iterator[HotBatch | Damage]:
    """Walk a segment as it is now: its good batches in order, and each run of damaged bytes.

    The segment is held in memory (they roll over at 64 MiB). Every batch is decoded and checked.

    Raises:
        NotATraceError: it does not start as a trace does.
        SchemaTooNewError: a newer tracekit wrote it.
        TraceError: it cannot be read at all.
    """
    file, data = _open(path)
    if data[:4] != _MARKER[: len(data)]:
        raise NotArrowError(path, "stream")
    yield from _walk(path, file, data, *_after_schema(data, path))


def salvage(path: Path, nonce: str = "", start: int = 0) -> Iterator[HotBatch | Damage]:
    """Do the same for a segment of a spool, of which any part may be damaged, the first as well.

    Args:
        nonce: of the spool; empty where it is not known.
        start: where a batch begins or the file ends, if not at its schema.
    """
    try:
        file, data = _open(path)
    except UnreadableTraceError as error:
        yield Damage(path, 0, 0, False, f"cannot be read ({error.reason})")
        return
    try:
        head, version, found = _after_schema(data, path) if data.startswith(_MARKER) else (0, SCHEMA_VERSION, "")
    except TraceError:
        head, version, found = 0, SCHEMA_VERSION, ""
    yield from _walk(path, file, data, max(start, head), version, nonce or found)


def salvage_sealed(path: Path) -> Iterator[HotBatch | Damage]:
    """Do the same for a sealed file, whose batches lie in it as in a stream: its footer is not needed, nor believed."""
    try:
        file, data = _open(path)
    except UnreadableTraceError as error:
        yield Damage(path, 0, 0, False, f"cannot be read ({error.reason})")
        return
    try:
        head, version, _ = _after_schema(data[_SEALED_START:], path)
    except TraceError:
        head, version = 0, SCHEMA_VERSION
    for item in _walk(path, file, data, _SEALED_START + head, version, ""):
        yield item
        if isinstance(item, HotBatch) and data.startswith(_END, item.offset + item.length):
            return  # the footer follows


def newest(batches: Sequence[Batch]) -> list[Batch]:
    """Return each batch once, in the order they came: of those that have numbers in common the last that was written.

    What is written again was put together anew, so that one may hold parts of several.
    """
    taken: dict[str, Taken] = {}
    kept = [
        batch
        for batch in reversed(batches)
        if taken.setdefault(batch.meta.engine_id, Taken()).take(batch.meta.first, batch.meta.seq)
    ]
    return kept[::-1]


def _open(path: Path) -> tuple[OpenFile, bytes]:
    try:
        file = OpenFile(path)
        return file, file.read(0, file.size)
    except OSError as error:
        raise UnreadableTraceError(path, error) from None


def _walk(
    path: Path, file: OpenFile, data: bytes, position: int, version: int, nonce: str
) -> Iterator[HotBatch | Damage]:
    def at(position: int) -> HotBatch | None:
        return _batch_at(data, position, path, file, version, nonce)

    while position < len(data):
        found = None if data.startswith(_END, position) else at(position)
        if found is None:
            if data.startswith(_END, position) and position + len(_END) == len(data):
                return
            resumed = position
            while found is None and (resumed := data.find(_MARKER, resumed + 1)) >= 0:
                found = at(resumed)
            until = found.offset if found else len(data)
            yield Damage(path, position, until - position, at_end=found is None)
            if found is None:
                return
        yield found
        nonce = nonce or found.meta.nonce
        position = found.offset + found.length


def _after_schema(data: bytes, path: Path) -> tuple[int, int, str]:
    """Return where the first batch starts, the schema's version, and the spool's nonce."""
    reader = pa.BufferReader(data)
    try:
        schema = pa.ipc.read_schema(reader)
    except DAMAGE:
        return 0, SCHEMA_VERSION, ""  # torn or damaged: what follows, if anything, proves itself
    version = check_schema(schema, str(path))
    nonce = (schema.metadata or {}).get(NONCE_KEY, b"").decode("utf-8", "replace")
    end = int(reader.tell())
    # a flipped bit in the schema's length would skip whole batches
    return (end if end == len(data) or data.startswith(_MARKER, end) else 0), version, nonce


def _batch_at(data: bytes, position: int, path: Path, file: OpenFile, version: int, nonce: str) -> HotBatch | None:
    """Return the good batch that starts at `position`, if one does."""
    end = _message_end(data, position)
    if end is None:
        return None
    try:
        batch, meta = _decode(data[position:end], f"the batch at {position}", version)
        for row in rows_of(batch, "losses").to_pylist() if "losses" in meta.rows else ():
            Loss.from_row(row)
    except (*DAMAGE, TraceCorruptError):
        return None
    if nonce and meta.nonce != nonce:
        return None  # a client's prompt may spell a batch
    return HotBatch(path, position, end - position, meta, file, version)


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
    if too_heavy(lambda offset, length: message[offset : offset + length], 0, len(message)):
        raise TraceCorruptError(f"{where} claims more memory than it can need")
    # our own schema in front: a flipped bit in the file's schema must not change what the bytes mean
    schema = arrow_schema(version)
    stream = pa.BufferReader(schema.serialize().to_pybytes() + message)
    # a hot batch is too small to share out to threads
    options = pa.ipc.IpcReadOptions(included_fields=fields_of(version, tables), use_threads=False)
    batch, metadata = pa.ipc.open_stream(stream, options=options).read_next_batch_with_custom_metadata()
    meta = from_metadata(dict(metadata or {}), where)
    verify(batch, meta, where)
    return (batch if version == SCHEMA_VERSION else widened(batch)), meta
