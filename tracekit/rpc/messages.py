"""The message classes of proto/tracekit/v1, made at run time, because no generated stub suits every protobuf.

Engines pin protobuf from 4.25 to 7.x. The descriptors (recorder.binpb, written by `make proto`) go into the default
pool, so that gRPC reflection finds them too. Every message of them is a name of this module; messages.pyi, written
along with them, is what type checkers read.
"""

from __future__ import annotations

from importlib import resources

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

PROTOCOL = 4

# Both ends; gRPC's own default. A batch is cut by rows far below it, and one row that is still larger, a prompt of half
# a million tokens, comes in pieces.
MAX_MESSAGE_BYTES = 4 << 20
MAX_HEAD_BYTES = 256 << 10  # of a Batch without its rows
MAX_PIECE_BYTES = 2 << 20  # of a payload in one frame
MAX_PAYLOAD_BYTES = 64 << 20  # of one batch in pieces: a prompt of sixteen million tokens

# What numbers and texts from outside may be: they end in JSON, in signed integers, and on somebody's screen.
MAX_SEQ = (1 << 48) - 1
MAX_COUNT = (1 << 53) - 1
MAX_TEXT = 4096

FILES = tuple(
    FileDescriptorSet.FromString(resources.files("tracekit.rpc").joinpath("recorder.binpb").read_bytes()).file
)


def _load():  # type: ignore[no-untyped-def]
    pool = descriptor_pool.Default()
    for file in FILES:
        pool.AddSerializedFile(file.SerializeToString())
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{message.name}"))
        for file in FILES
        for message in file.message_type
    }


globals().update(_load())
