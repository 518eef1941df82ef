"""One message of the stream Record, both ends: a batch and its rows under one checksum, bounded before it is parsed."""

from __future__ import annotations

import zlib
from typing import NamedTuple

from google.protobuf.message import DecodeError

from tracekit.errors import ChecksumError, TracekitError
from tracekit.rpc import messages


class Framed(NamedTuple):
    """What a frame holds, checked against its checksum and in nothing else.

    Example:
        Framed(messages.Batch(engine_id="9f…", seq=7), payload=b"…", size=4711)
    """

    batch: messages.Batch
    payload: bytes
    size: int  # of the frame, in bytes


def frame(batch: messages.Batch, payload: bytes = b"") -> bytes:
    """Return a batch with its rows, or a piece of them, as one message."""
    head = batch.SerializeToString()
    crc = zlib.crc32(payload, zlib.crc32(head))
    return messages.Frame(crc=crc, batch=head, payload=payload).SerializeToString()


def unframe(data: bytes) -> Framed:
    """Return what a message holds.

    What it costs is bounded by its size: a Frame has no messages in it, and the Batch, which has, may be
    `MAX_HEAD_BYTES` long.

    Raises:
        ChecksumError: it was damaged on the way.
        TracekitError: it is not a frame, or its batch is too long.
    """
    try:
        found = messages.Frame.FromString(data)
        head, payload = found.batch, found.payload
        if len(head) > messages.MAX_HEAD_BYTES:
            raise TracekitError(f"a batch without its rows has at most {messages.MAX_HEAD_BYTES >> 10} KiB")
        if zlib.crc32(payload, zlib.crc32(head)) != found.crc:
            raise ChecksumError("what was sent")
        return Framed(messages.Batch.FromString(head), payload, len(data))
    except DecodeError:
        raise TracekitError("what was sent is not a frame of tracekit.v1") from None
