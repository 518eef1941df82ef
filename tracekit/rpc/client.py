"""What tools ask a daemon."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc

from tracekit.errors import DaemonError, ProtocolMismatchError
from tracekit.rpc import messages

CALL_SECS = 10.0


class ControlClient:
    """Calls `tracekit.v1.Control` of one daemon.

    Args:
        address: `unix:/path/to.sock`.
        timeout_secs: for each call; `flush` waits for the disk, so give it time.
    """

    def __init__(self, address: str, timeout_secs: float = CALL_SECS) -> None:
        self.address = address
        self._timeout_secs = timeout_secs
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        self._channel = grpc.insecure_channel(address, options=options)

    def describe(self) -> messages.DescribeReply:
        """Return what the daemon is.

        Raises:
            DaemonError: it cannot be reached.
            ProtocolMismatchError: it speaks another protocol version.
        """
        reply: messages.DescribeReply = self._ask(
            messages.DESCRIBE, messages.DescribeRequest(), messages.DescribeReply.FromString
        )
        if reply.protocol != messages.PROTOCOL:
            raise ProtocolMismatchError(
                f"the daemon speaks protocol {reply.protocol}, this tracekit {messages.PROTOCOL}: {self.address}"
            )
        return reply

    def list_engines(self) -> list[messages.EngineInfo]:
        """Return every engine that the daemon has seen, in the order of their numbers."""
        ask: Any = self._ask(messages.LIST_ENGINES, messages.ListEnginesRequest(), messages.ListEnginesReply.FromString)
        return list(ask.engines)

    def flush(self) -> None:
        """Return when everything that the daemon has received is on its disk."""
        self._ask(messages.FLUSH, messages.FlushRequest(), messages.FlushReply.FromString)

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def __enter__(self) -> "ControlClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: str, request: Any, parse: Callable[[bytes], Any]) -> Any:
        call = self._channel.unary_unary(
            method, request_serializer=lambda message: message.SerializeToString(), response_deserializer=parse
        )
        try:
            return call(request, timeout=self._timeout_secs)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                raise ProtocolMismatchError(f"what listens there is no tracekitd: {self.address}") from None
            raise DaemonError(f"the daemon does not answer ({error.code().name}): {self.address}") from None


def wait_ready(address: str, timeout_secs: float) -> messages.DescribeReply:
    """Return once the daemon at `address` answers.

    Raises:
        DaemonError: it did not within `timeout_secs`.
        ProtocolMismatchError: it speaks another protocol version.
    """
    deadline = time.monotonic() + timeout_secs
    while True:
        try:
            # a new channel each time: one that failed waits before it tries again
            with ControlClient(address, max(0.1, deadline - time.monotonic())) as client:
                return client.describe()
        except ProtocolMismatchError:
            raise
        except DaemonError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.05)
