"""What a tool is told when the daemon is another than it expects."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tracekit.errors import DaemonError, ProtocolMismatchError
from tracekit.rpc import messages
from tracekit.rpc.client import ControlClient, wait_ready
from tracekit.rpc.methods import CONTROL


@pytest.fixture
def serve(tmp_path):
    servers = []

    def serve(methods):
        server = grpc.server(ThreadPoolExecutor(2))
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(CONTROL, methods)])
        address = f"unix:{tmp_path}/d.sock"
        server.add_insecure_port(address)
        server.start()
        servers.append(server)
        return address

    yield serve
    for server in servers:
        server.stop(None)


def test_a_daemon_of_another_protocol_is_a_mismatch(serve):
    reply = messages.DescribeReply(protocol=1).SerializeToString()
    address = serve({"Describe": grpc.unary_unary_rpc_method_handler(lambda request, context: reply)})
    with pytest.raises(ProtocolMismatchError, match="the daemon speaks protocol 1, this tracekit 4: unix:"):
        wait_ready(address, 30)


def test_another_kind_of_server_is_a_mismatch(serve):
    with ControlClient(serve({})) as client, pytest.raises(ProtocolMismatchError, match="is not a tracekitd"):
        client.list_engines()


def test_nobody_there_is_one_sentence(tmp_path):
    with ControlClient(f"unix:{tmp_path}/none.sock") as client, pytest.raises(DaemonError, match="does not answer"):
        client.flush()
