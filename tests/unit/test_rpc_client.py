"""What a tool is told when the daemon is another than it expects."""

import subprocess
import sys
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


def test_a_trainer_with_hardly_a_descriptor_left_is_not_aborted_by_grpc(serve):
    code = """
import os, resource, sys
from tracekit.errors import DaemonError
from tracekit.rpc.client import ControlClient
limit = len(os.listdir("/proc/self/fd")) + 1
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
try:
    with ControlClient(sys.argv[1]) as client:
        client.list_engines()
except DaemonError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code, serve({})], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "hardly a file descriptor left" in done.stdout
