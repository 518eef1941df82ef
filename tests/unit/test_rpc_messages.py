"""The run-time messages: what is committed is what proto/ says, and they load without anything heavy."""

import subprocess
import sys

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from scripts import gen_proto
from tracekit.rpc import messages


def test_committed_descriptors_and_stub_are_those_of_proto():
    committed = gen_proto.DESCRIPTORS.read_bytes()
    assert FileDescriptorSet.FromString(gen_proto.compile_descriptors()) == FileDescriptorSet.FromString(committed)
    assert gen_proto.STUB.read_text() == gen_proto.render_stub(committed)


def test_every_message_of_proto_has_a_class():
    files = FileDescriptorSet.FromString(gen_proto.DESCRIPTORS.read_bytes()).file
    names = {message.name for file in files for message in file.message_type}
    assert names <= vars(messages).keys()


def test_a_batch_survives_the_wire():
    batch = messages.Batch(engine_id="e", seq=7, totals=messages.Counters(produced={"tokens": 2**40}), last=True)
    batch.losses.append(messages.Loss(from_seq=1, to_seq=2, reason="full", rows={"steps": 3}))
    again = messages.Batch.FromString(batch.SerializeToString())
    assert again == batch
    assert dict(again.totals.produced) == {"tokens": 2**40}


def test_columns_import_neither_grpc_nor_arrow():
    code = "import sys, tracekit.rpc.columns; print([m for m in ('grpc', 'pyarrow', 'click') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
