"""One hot segment while it is written: an Arrow stream that gets one whole message per `write(2)`."""

from __future__ import annotations

import errno
import io
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from tracekit.trace.schema import spool_schema

HOT_LEVEL = 1
SMALL_BYTES = 8 << 10  # below, zstd saves nothing, and costs 25 times more in set-up, a column at a time


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
class HotSegment:
    """An open hot segment; `size` is where its last whole message ends, `synced` how much of it is on the disk."""

    path: Path
    fd: int
    head: bytes
    capture: _Capture
    compressed: pa.RecordBatchStreamWriter
    plain: pa.RecordBatchStreamWriter  # Arrow allows both kinds of batch in one stream
    size: int = 0
    synced: int = 0
    ended: bool = False
    began: float = field(default_factory=time.monotonic)
    unsynced: list[bytes] = field(default_factory=list)

    @classmethod
    def create(cls, path: Path, nonce: str) -> HotSegment:
        """Make a new file that holds the schema; an OSError leaves none."""
        capture, schema = _Capture(), spool_schema(nonce)
        codec = pa.Codec("zstd", HOT_LEVEL)
        compressed, plain = (
            pa.ipc.new_stream(
                capture, schema, options=pa.ipc.IpcWriteOptions(compression=compression, use_threads=False)
            )
            for compression in (codec, None)
        )
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        segment = cls(path, fd, schema.serialize().to_pybytes(), capture, compressed, plain)
        try:
            segment.write(segment.head)
        except OSError:
            os.close(fd)
            path.unlink()
            raise
        return segment

    def encode(self, batch: pa.RecordBatch, metadata: dict[bytes, bytes]) -> bytes:
        """Return a batch as the bytes of its Arrow message; small ones are not compressed."""
        writer = self.plain if batch.nbytes < SMALL_BYTES else self.compressed
        writer.write_batch(batch, custom_metadata=metadata)
        # Arrow writes the schema together with the first batch; `create` has written it already
        return self.capture.take().removeprefix(self.head)

    def write(self, message: bytes) -> None:
        """Append bytes, all or none; an OSError leaves the file as it was."""
        done = 0
        try:
            while done < len(message):  # a second turn only where the disk took less than all of it
                done += os.write(self.fd, memoryview(message)[done:])
        except OSError:
            os.ftruncate(self.fd, self.size)
            raise
        self.size += len(message)

    def sync(self) -> None:
        """Put what was written on the disk; an OSError where it is not, or where somebody deleted the file."""
        os.fdatasync(self.fd)
        if not os.fstat(self.fd).st_nlink:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))

    def end(self) -> None:
        """Write Arrow's end-of-stream mark, if the disk takes it: without it the segment reads just as well."""
        if not self.ended:
            self.ended = True
            try:
                self.write(b"\xff\xff\xff\xff\0\0\0\0")
            except OSError:
                pass

    def close(self) -> None:
        """Close the file; nothing is written."""
        os.close(self.fd)


class Work:
    """What a sync covers of a segment, which grows meanwhile."""

    def __init__(self, segment: HotSegment) -> None:
        self.segment = segment
        self.count, self.size, self.ended = len(segment.unsynced), segment.size, segment.ended
