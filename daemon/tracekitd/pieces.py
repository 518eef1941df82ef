"""One batch that came in several messages, because one row of it is too long for one."""

from __future__ import annotations

import grpc

from tracekit.rpc import messages
from tracekit.rpc.frames import Framed
from tracekitd.intake import Refused

MAX_PIECES = 64
SECS = 30.0  # for all pieces of a batch


class Pieces:
    """Collects the pieces of one batch, in order."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._num_bytes = 0

    def add(self, framed: Framed, seq: int) -> bool:
        """Take the next piece of batch `seq`; return whether it was the last.

        Raises:
            Refused: it is not the next one, or the batch grows too large.
        """
        batch = framed.batch
        self._num_bytes += len(framed.payload)
        fits = self._num_bytes <= messages.MAX_PAYLOAD_BYTES and batch.pieces <= MAX_PIECES
        if batch.seq != seq or batch.piece != len(self._parts) or batch.piece >= batch.pieces or not fits:
            text = f"batch {seq} is malformed: its pieces are not in order, or more than a batch may hold"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)
        self._parts.append(framed.payload)
        return len(self._parts) == batch.pieces

    def payload(self) -> bytes:
        """Return the whole."""
        return b"".join(self._parts)
