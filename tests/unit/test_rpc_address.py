"""Where a daemon is: the path of its socket is taken letter by letter, whatever a URI would make of it."""

from concurrent import futures
from pathlib import Path

import grpc
import pytest

from tracekit.errors import DaemonError, ProtocolMismatchError, UsageError
from tracekit.rpc.address import socket_of, target_of
from tracekit.rpc.client import ControlClient
from tracekitd.address import socket_path

ODD = ["a b", "a%20b", "100%", "a?b", "a#b", "é漢", "a:b", "[a]", "a;b", "~", "a+b&c=d@e$!*()'\""]


@pytest.mark.parametrize("name", ODD)
def test_both_ends_mean_the_same_socket(name: str, short_path: Path) -> None:
    path = short_path / name / "d.sock"
    path.parent.mkdir()
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_insecure_port(target_of(f"unix:{path}"))
    server.start()
    try:
        assert path.exists()
        for address in (f"unix:{path}", f"unix://{path}"):
            assert socket_of(address) == path
            with ControlClient(address) as client, pytest.raises(ProtocolMismatchError, match="tracekitd"):
                client.describe()
    finally:
        server.stop(0).wait()


def test_what_is_no_socket(tmp_path: Path) -> None:
    assert [socket_of(text) for text in ("localhost:7000", "unix:", "unix://", "")] == [None] * 4
    assert target_of("localhost:7000") == "localhost:7000"
    with ControlClient(f"unix:{tmp_path}/%2e/d.sock") as client, pytest.raises(DaemonError, match=r"%2e/d\.sock"):
        client.describe()
    with pytest.raises(UsageError, match="comma"):
        socket_path(f"unix:{tmp_path}/a,b/d.sock")
