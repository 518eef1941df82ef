"""What tools ask a daemon."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc

from tracekit.errors import DaemonError, NotMarkedError, ProtocolMismatchError
from tracekit.rpc import messages
from tracekit.rpc.address import tcp_of
from tracekit.rpc.credentials import Access, metadata_of, open_channel
from tracekit.rpc.methods import CONTROL, SERVICES
from tracekit.rpc.spare import lacking

CALL_SECS = 10.0
REFUSALS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)


@dataclass(frozen=True)
class Mark:
    """What one engine answered to a label.

    Example:
        Mark(engine=0, engine_id="9f…", weight_version=3, engine_step=1842, error=None)
    """

    engine: int
    engine_id: str
    weight_version: int  # what was labelled; 0 with an error
    engine_step: int  # the engine's count of steps at that moment
    error: str | None  # why there is no label


class ControlClient:
    """Calls `tracekit.v1.Control` of one daemon.

    Args:
        address: `unix:/path/to.sock`, or `grpcs://HOST:PORT`; then `access` says how.
        timeout_secs: for each call; `flush` waits for the disk and `mark_weights` for engines, so give them time.
        access: token and certificates; None: those that the environment names, see `Access.of_environ`.

    Raises:
        UsageError: another kind of address, or a file that cannot be used.
        DaemonError: this process has hardly a descriptor or a thread left: grpc would abort it.
    """

    def __init__(self, address: str, timeout_secs: float = CALL_SECS, access: Access | None = None) -> None:
        self.address = address
        self._timeout_secs = timeout_secs
        access = Access.of_environ() if access is None else access
        self._metadata = metadata_of(address, access)
        if what := lacking():
            raise DaemonError(f"this process has hardly a {what} left, so the daemon cannot be asked: {address}")
        self._channel = open_channel(grpc, address, access, [])

    def describe(self) -> messages.DescribeReply:
        """Return what the daemon is.

        Raises:
            DaemonError: it cannot be reached.
            ProtocolMismatchError: it speaks another protocol version.
        """
        reply: messages.DescribeReply = self._ask("Describe")
        if reply.protocol != messages.PROTOCOL:
            raise ProtocolMismatchError(
                f"the daemon speaks protocol {reply.protocol}, this tracekit {messages.PROTOCOL}: {self.address}"
            )
        return reply

    def list_engines(self, *, live: bool = False) -> list[messages.EngineInfo]:
        """Return every engine that the daemon has seen, in the order of their numbers; `live`: with its newest step."""
        return list(self._ask("ListEngines", live=live).engines)

    def flush(self) -> None:
        """Return when everything that the daemon has received is on its disk."""
        self._ask("Flush")

    def mark_weights(self, label: str, checkpoint: str | None = None, engines: Iterable[int] = ()) -> list[Mark]:
        """Say that the weights now in the engines are `label`; return once that is in the trace, on the disk.

        Each engine stamps a row of the table `weights` with the weight version that it has at that moment, so call
        this between an update and the next one. What it says is the caller's claim: nothing compares it with the
        weights.

        Args:
            label: the caller's name of these weights, such as "step-120".
            checkpoint: where they are stored; a path that exists here is made absolute.
            engines: their numbers; none: every engine that has not ended.

        Raises:
            NotMarkedError: an engine did not confirm; the text names each, `error.marks` holds all answers.
            DaemonError: there is no such engine, the label is empty, or the daemon went away: then the label may be
                in the trace or not, and may be given again.
        """
        stored = os.path.abspath(checkpoint) if checkpoint and os.path.exists(checkpoint) else checkpoint
        mark = messages.MarkWeights(label=label, checkpoint=stored or "")
        reply: messages.MarkWeightsReply = self._ask("MarkWeights", mark=mark, engines=engines)
        marks = [
            Mark(m.engine, m.engine_id, m.result.weight_version, m.result.engine_step, m.result.error or None)
            for m in reply.engines
        ]
        if failed := [mark for mark in marks if mark.error]:
            told = "; ".join(f"engine {mark.engine}: {mark.error}" for mark in failed)
            done = ", ".join(str(mark.engine) for mark in marks if not mark.error) or "none"
            raise NotMarkedError(f"not every engine confirmed the label ({told}; confirmed: {done})", marks)
        return marks

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, name: str, **fields: Any) -> Any:
        """Call the RPC of this name with a request of these fields; return its reply."""
        method = SERVICES[CONTROL][name]
        try:
            return method.on(self._channel)(
                method.request(**fields), timeout=self._timeout_secs, metadata=self._metadata
            )
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNIMPLEMENTED:
                raise ProtocolMismatchError(f"what listens there is not a tracekitd: {self.address}") from None
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise DaemonError(f"the daemon does not know our token: {self.address}") from None
            if error.code() in REFUSALS:
                raise DaemonError(f"{error.details()}: {self.address}") from None
            why = f"{error.code().name}, {error.details()}" if tcp_of(self.address) else error.code().name
            raise DaemonError(f"the daemon does not answer ({why}): {self.address}") from None


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
