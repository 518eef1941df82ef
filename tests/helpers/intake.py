"""What the daemon does with one message off the wire, as a whole and without a daemon."""

import zlib

from tracekit.rpc import messages
from tracekitd.arrow import to_record_batch
from tracekitd.intake import Refused, check_hello, decode, open_frame


def outcome(data: bytes, mend: bool = False) -> str:
    """Take a message in as the service does; return what it was.

    Args:
        data: the message.
        mend: make its checksum right first, or little of it would be looked at.
    """
    try:
        framed = open_frame(_mended(data) if mend else data)
        if framed.batch.HasField("hello"):
            check_hello(framed)
            return "hello"
        try:
            received = decode(framed.batch, framed.payload, 0, trainer=False)
        except Refused:
            received = decode(framed.batch, framed.payload, 0, trainer=True)
        made, _ = to_record_batch([received])
        made.validate(full=True)
        return "batch"
    except Refused as refused:
        text = str(refused)
        assert text and "\n" not in text and len(text) < 1000, text
        return "refused"


def _mended(data: bytes) -> bytes:
    try:
        frame = messages.Frame.FromString(data)
    except Exception:
        return data
    frame.crc = zlib.crc32(frame.payload, zlib.crc32(frame.batch))
    return frame.SerializeToString()
