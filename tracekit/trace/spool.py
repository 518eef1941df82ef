"""The spool: hot segments that a crash cannot spoil, one `write(2)` a batch, synced when the caller says so."""

from __future__ import annotations

import fcntl
import io
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from tracekit.errors import OutputError
from tracekit.trace.batch import BatchMeta, to_metadata
from tracekit.trace.schema import arrow_schema
from tracekit.trace.segments import LOCK_NAME, SUFFIX, Damage, scan, segment_paths, truncate_torn_tail

SEGMENT_BYTES = 64 << 20
HOT_LEVEL = 1
SMALL_BYTES = 8 << 10  # below, zstd saves nothing, and costs 25 times more in set-up, a column at a time


@dataclass(frozen=True)
class ResumePoint:
    """Where an engine's recording stands on the disk."""

    engine: int
    seq: int  # the highest on the disk
    produced: dict[str, int]
    lost: dict[str, int]
    last: bool


class SpoolWriter:
    """Appends batches to the hot segments of a folder; safe to call from several threads.

    Unsynced messages are kept in memory until `sync` succeeds: when a sync fails, the kernel may have dropped pages
    and called them clean, so the segment is abandoned, never synced again, and its unsynced messages go to a new one.
    The reader drops the copy that it has seen.
    """

    def __init__(self, folder: str | os.PathLike[str], *, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Take the folder, creating it (0700), and cut the torn tail that a crash may have left.

        Raises:
            OutputError: another writer holds it, or it cannot be written.
            TraceError: what is in it cannot be read as a spool.
        """
        self.folder = Path(folder)
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._segments: list[_Segment] = []  # not yet synced, and the one being written at the end
        self._orphans: list[bytes] = []  # messages of abandoned segments, still to be written again
        self._closed = False
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_file = _take_lock(self.folder)
        except OSError as error:
            raise OutputError(f"cannot write the spool folder {self.folder}: {error.strerror}") from None
        try:
            self._resume, self._next_number = _recover(self.folder)
        except BaseException:
            os.close(self._lock_file)
            raise

    def resume(self) -> dict[str, ResumePoint]:
        """Return, by engine id, what was on the disk when the spool was opened."""
        return dict(self._resume)

    def append(self, batch: pa.RecordBatch, meta: BatchMeta) -> int:
        """Write one batch, not yet durable, and return its size in bytes.

        Raises:
            OutputError: the disk refused it (it is full, say); nothing of it stays, and it may be appended again.
        """
        metadata = to_metadata(batch, meta)
        with self._lock:
            try:
                self._write_orphans()
                return self._write(lambda segment: segment.encode(batch, metadata))
            except OSError as error:
                raise OutputError(f"cannot append to the spool {self.folder}: {error.strerror}") from None

    def sync(self) -> None:
        """Return once everything appended before this call is on the disk.

        Raises:
            OutputError: the disk refused, and refused the copy as well; call again later, nothing is forgotten.
        """
        with self._sync_lock:
            for attempt in range(2):
                try:
                    self._sync_once()
                    return
                except OSError as error:
                    if attempt:
                        raise OutputError(f"cannot sync the spool {self.folder}: {error.strerror}") from None

    def close(self) -> None:
        """End the open segment, sync and let go of the folder; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            with self._lock:
                for segment in self._segments:
                    segment.end()
            self.sync()
        finally:
            for segment in self._segments:
                segment.close()
            self._segments.clear()
            os.close(self._lock_file)

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, encode: Callable[[_Segment], bytes]) -> int:
        segment = self._segments[-1] if self._segments else None
        if segment is None or segment.ended or segment.size >= self._segment_bytes:
            if segment is not None:
                segment.end()
            path = self.folder / f"hot-{self._next_number:06d}{SUFFIX}"
            self._next_number += 1
            segment = _Segment.create(path)
            self._segments.append(segment)
        message = encode(segment)
        segment.write(message)
        segment.unsynced.append(message)
        return len(message)

    def _write_orphans(self) -> None:
        while self._orphans:
            message = self._orphans[0]
            self._write(lambda _: message)  # noqa: B023 - called at once
            del self._orphans[0]

    def _sync_once(self) -> None:
        with self._lock:
            self._write_orphans()
            work = [(segment, len(segment.unsynced)) for segment in self._segments]
        for segment, count in work:
            try:
                os.fdatasync(segment.fd)
                if segment.is_new:
                    _sync_folder(self.folder)
            except OSError:
                with self._lock:
                    self._segments.remove(segment)
                    self._orphans += segment.unsynced
                    segment.close()
                raise
            with self._lock:
                segment.is_new = False
                del segment.unsynced[:count]
                if segment.ended and not segment.unsynced:
                    self._segments.remove(segment)
                    segment.close()


class _Capture(io.RawIOBase):
    """A file that hands over what was written to it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.parts.append(bytes(data))  # type: ignore[call-overload]
        return len(self.parts[-1])

    def take(self) -> bytes:
        taken = b"".join(self.parts)
        self.parts.clear()
        return taken


@dataclass
class _Segment:
    """An open hot segment; `size` is where its last whole message ends."""

    path: Path
    fd: int
    capture: _Capture
    compressed: pa.RecordBatchStreamWriter
    plain: pa.RecordBatchStreamWriter  # Arrow allows both kinds of batch in one stream
    size: int = 0
    ended: bool = False
    is_new: bool = True
    unsynced: list[bytes] = field(default_factory=list)

    @classmethod
    def create(cls, path: Path) -> _Segment:
        capture = _Capture()
        codec = pa.Codec("zstd", HOT_LEVEL)
        compressed, plain = (
            pa.ipc.new_stream(
                capture, arrow_schema(), options=pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
            )
            for compression in (codec, None)
        )
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        segment = cls(path, fd, capture, compressed, plain)
        try:
            segment.write(arrow_schema().serialize().to_pybytes())
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        return segment

    def encode(self, batch: pa.RecordBatch, metadata: dict[bytes, bytes]) -> bytes:
        writer = self.plain if batch.nbytes < SMALL_BYTES else self.compressed
        writer.write_batch(batch, custom_metadata=metadata)
        # Arrow writes the schema together with the first batch; `create` has written it already
        return self.capture.take().removeprefix(arrow_schema().serialize().to_pybytes())

    def write(self, message: bytes) -> None:
        done = 0
        try:
            while done < len(message):  # a second turn only where the disk took less than all of it
                done += os.write(self.fd, memoryview(message)[done:])
        except OSError:
            os.ftruncate(self.fd, self.size)
            raise
        self.size += len(message)

    def end(self) -> None:
        """Write Arrow's end-of-stream mark, if the disk takes it: without it the segment reads just as well."""
        if not self.ended:
            self.ended = True
            try:
                self.write(b"\xff\xff\xff\xff\0\0\0\0")
            except OSError:
                pass

    def close(self) -> None:
        os.close(self.fd)


def _take_lock(folder: Path) -> int:
    fd = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(20):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return fd
        except BlockingIOError:
            time.sleep(0.01)  # a reader holds it for an instant, to see whether a writer does
    os.close(fd)
    raise OutputError(f"another tracekitd is writing this spool: {folder}")


def _recover(folder: Path) -> tuple[dict[str, ResumePoint], int]:
    """Return where each engine stands and the number of the next segment, after cutting a torn tail."""
    points: dict[str, ResumePoint] = {}
    paths = segment_paths(folder)
    for path in paths:
        for found in scan(path):
            if isinstance(found, Damage):
                if found.at_end:
                    truncate_torn_tail(path, found)
                continue
            meta = found.meta
            known = points.get(meta.engine_id)
            if known is None or known.seq < meta.seq:
                points[meta.engine_id] = ResumePoint(meta.engine, meta.seq, meta.produced, meta.lost, meta.last)
    return points, int(paths[-1].name.removesuffix(SUFFIX).split("-")[1]) + 1 if paths else 0


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
