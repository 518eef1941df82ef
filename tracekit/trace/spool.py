"""The spool: hot segments that a crash cannot spoil, one `write(2)` a batch, synced when the caller says so."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from tracekit.errors import OutputError
from tracekit.trace.batch import BatchMeta
from tracekit.trace.hot import HotSegment
from tracekit.trace.proof import to_metadata
from tracekit.trace.segments import LOCK_NAME, SUFFIX, Damage, scan, segment_paths, truncate_torn_tail

SEGMENT_BYTES = 64 << 20


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
        self._segments: list[HotSegment] = []  # not yet synced, and the one being written at the end
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

    def _write(self, encode: Callable[[HotSegment], bytes]) -> int:
        segment = self._segments[-1] if self._segments else None
        if segment is None or segment.ended or segment.size >= self._segment_bytes:
            if segment is not None:
                segment.end()
            path = self.folder / f"hot-{self._next_number:06d}{SUFFIX}"
            self._next_number += 1
            segment = HotSegment.create(path)
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
