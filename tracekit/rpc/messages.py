"""The message classes of proto/tracekit/v1, made at run time, because no generated stub suits every protobuf.

Engines pin protobuf from 4.25 to 7.x. The descriptors (recorder.binpb, written by `make proto`) go into the default
pool, so that gRPC reflection finds them too. Every message of them is a name of this module; messages.pyi, written
along with them, is what type checkers read.
"""

from __future__ import annotations

from importlib import resources

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

PROTOCOL = 2

# Both ends. The largest thing that cannot be split is one request: a prompt of a million tokens is 4 MiB, which is
# gRPC's own default limit, so that is not enough; 64 MiB is room for sixteen million.
MAX_MESSAGE_BYTES = 64 << 20

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
