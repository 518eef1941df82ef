"""The message classes of proto/tracekit/v1, made at run time, because no generated stub suits every protobuf.

Engines pin protobuf from 4.25 to 7.x. The descriptors (recorder.binpb, written by `make proto`) go into the default
pool, so that gRPC reflection finds them too. messages.pyi, written along with them, is what type checkers read.
"""

from importlib import resources

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet

PROTOCOL = 2

RECORDER_SERVICE = "tracekit.v1.Recorder"
CONTROL_SERVICE = "tracekit.v1.Control"
RECORD = f"/{RECORDER_SERVICE}/Record"
DESCRIBE = f"/{CONTROL_SERVICE}/Describe"
LIST_ENGINES = f"/{CONTROL_SERVICE}/ListEngines"
FLUSH = f"/{CONTROL_SERVICE}/Flush"
MARK_WEIGHTS = f"/{CONTROL_SERVICE}/MarkWeights"

# Both ends. The largest thing that cannot be split is one request: a prompt of a million tokens is 4 MiB, which is
# gRPC's own default limit, so that is not enough; 64 MiB is room for sixteen million.
MAX_MESSAGE_BYTES = 64 << 20


def _load():  # type: ignore[no-untyped-def]
    pool = descriptor_pool.Default()
    descriptors = FileDescriptorSet.FromString(resources.files("tracekit.rpc").joinpath("recorder.binpb").read_bytes())
    for file in descriptors.file:
        pool.AddSerializedFile(file.SerializeToString())
    return {
        message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{message.name}"))
        for file in descriptors.file
        for message in file.message_type
    }


_CLASSES = _load()

Ack = _CLASSES["Ack"]
Batch = _CLASSES["Batch"]
Column = _CLASSES["Column"]
Command = _CLASSES["Command"]
CommandResult = _CLASSES["CommandResult"]
Counters = _CLASSES["Counters"]
DescribeReply = _CLASSES["DescribeReply"]
DescribeRequest = _CLASSES["DescribeRequest"]
EngineInfo = _CLASSES["EngineInfo"]
FlushReply = _CLASSES["FlushReply"]
FlushRequest = _CLASSES["FlushRequest"]
Hello = _CLASSES["Hello"]
ListEnginesReply = _CLASSES["ListEnginesReply"]
ListEnginesRequest = _CLASSES["ListEnginesRequest"]
Loss = _CLASSES["Loss"]
MarkWeights = _CLASSES["MarkWeights"]
MarkWeightsReply = _CLASSES["MarkWeightsReply"]
MarkWeightsRequest = _CLASSES["MarkWeightsRequest"]
MarkedEngine = _CLASSES["MarkedEngine"]
Table = _CLASSES["Table"]
Tables = _CLASSES["Tables"]
