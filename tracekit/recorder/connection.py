"""One connection to the daemon: a hello, then what waits in the window; acks and commands come back."""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from tracekit import __version__
from tracekit.recorder.guard import say_once
from tracekit.recorder.window import Window
from tracekit.rpc import messages
from tracekit.rpc.address import socket_of, strangers_socket, tcp_of
from tracekit.rpc.credentials import Access, metadata_of, open_channel
from tracekit.rpc.frames import frame
from tracekit.rpc.methods import RECORDER, SERVICES
from tracekit.rpc.spare import lacking
from tracekit.tables import SCHEMA_VERSION

BEAT_SECS = 1.0


class State(enum.Enum):
    """Where a connection is; it only moves down."""

    GREETING = "greeting"  # the daemon has not answered the hello yet
    READY = "ready"  # batches may be sent
    OVER = "over"


class Then(enum.Enum):
    """What a connection's end means for the next one."""

    TRY_AGAIN = "try again"
    SUSPECT = "suspect"  # try again, but the daemon may have ended it because of the oldest batch
    GIVE_UP = "give up"


class Ending(NamedTuple):
    """How a connection ended.

    Example:
        Ending(Then.GIVE_UP, "the daemon at unix:/run/d.sock refuses this recorder: it speaks protocol 3")
    """

    then: Then
    reason: str = ""


class Connection:
    """Speaks with one daemon until one of the two ends it; used once.

    Args:
        address: `unix:/path/to.sock` or `grpcs://HOST:PORT`.
        access: token and certificates for the latter.
        token: what proves that the window's engine is ours.
        trainer: whether it is no engine, but a trainer.
        window: what is to be sent.
        cond: guards the window and the state; notified when either changes.
        on_ready: called when the daemon has answered the hello.
        on_command: called with each command of the daemon.

    Attributes:
        answered: whether the daemon ever answered.
    """

    def __init__(
        self,
        address: str,
        access: Access,
        token: str,
        trainer: bool,
        window: Window,
        cond: threading.Condition,
        on_ready: Callable[[], None],
        on_command: Callable[[messages.Command], None],
    ) -> None:
        self._address = address
        self._access = access
        self._token = token
        self._trainer = trainer
        self._window = window
        self._cond = cond
        self._on_ready = on_ready
        self._on_command = on_command
        self.answered = False
        self._state = State.GREETING
        self._call: Any = None

    def run(self) -> Ending:
        """Use the connection until it ends.

        Raises:
            Exception: anything that grpc or the operating system may raise where a thread or a socket cannot be made.
        """
        path = socket_of(self._address)
        if path is None and tcp_of(self._address) is None:
            return Ending(Then.GIVE_UP, f"only unix: and grpcs:// addresses are supported, not {self._address}")
        if path is not None and not os.path.exists(path):
            return Ending(Then.TRY_AGAIN)
        if path is not None and strangers_socket(path):
            return Ending(Then.GIVE_UP, f"the socket belongs to somebody else, who would get all prompts: {path}")
        if what := lacking():
            say_once(f"this process has hardly a {what} left: rows are kept until it has")
            return Ending(Then.TRY_AGAIN)
        try:
            grpc, channel = _open_channel(self._address, self._access)
            metadata = metadata_of(self._address, self._access)
        except ImportError as error:
            return Ending(Then.GIVE_UP, f"grpc cannot be imported here: {error}")
        try:
            call = SERVICES[RECORDER]["Record"].on(channel)(self._outgoing(), metadata=metadata)
            with self._cond:
                self._call = call
                if self._state is State.OVER:
                    call.cancel()
            for ack in call:
                self._acked(ack)
        except grpc.RpcError as error:
            return self._judge(grpc, error.code(), error.details())
        finally:
            with self._cond:
                self._state, self._call = State.OVER, None
                self._cond.notify_all()
            channel.close()
        return Ending(Then.TRY_AGAIN)

    def end(self) -> None:
        """End it from any thread, also before it began."""
        with self._cond:
            self._state = State.OVER
            call = self._call
            self._cond.notify_all()
        if call is not None:
            call.cancel()

    def _outgoing(self) -> Iterator[bytes]:
        """What grpc sends, on a thread of its own: a hello, then, once answered, everything that is not acked."""
        hello = messages.Hello(
            protocol=messages.PROTOCOL,
            schema=SCHEMA_VERSION,
            recorder_version=__version__,
            token=self._token,
            trainer=self._trainer,
        )
        yield frame(messages.Batch(engine_id=self._window.engine_id, hello=hello))
        while (batch := self._next_batch()) is not None:
            yield batch

    def _next_batch(self) -> bytes | None:
        """Wait for a batch to send; None where the connection is over."""
        with self._cond:
            while self._state is not State.OVER:
                batch = self._window.next_unsent() if self._state is State.READY else None
                if batch is not None:
                    return batch
                if not self._cond.wait(BEAT_SECS) and self._state is State.READY:
                    self._window.beat()
        return None

    def _acked(self, ack: messages.Ack) -> None:
        with self._cond:
            self._window.ack(ack.durable_seq)
            first, self.answered = not self.answered, True
            if first:
                self._window.rewind()
            if self._state is State.GREETING:
                self._state = State.READY
            self._cond.notify_all()
        if first:
            self._on_ready()
        for command in ack.commands:
            self._on_command(command)

    def _judge(self, grpc: Any, code: Any, details: str) -> Ending:
        """Return what the status that ended the connection means; for most it is enough to connect again."""
        malformed = code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DATA_LOSS)
        if malformed and self.answered:
            return Ending(Then.SUSPECT, details)
        foreign = (
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.UNIMPLEMENTED,
            grpc.StatusCode.PERMISSION_DENIED,
        )
        if malformed or code in foreign:
            return Ending(Then.GIVE_UP, refusal(self._address, details))
        if code is not grpc.StatusCode.CANCELLED and (code is grpc.StatusCode.UNAUTHENTICATED or tcp_of(self._address)):
            say_once(
                f"the daemon at {self._address} is not there yet, or not for us ({details}); rows are kept meanwhile"
            )
        return Ending(Then.TRY_AGAIN)


def refusal(address: str, details: str) -> str:
    """Say that the daemon will have nothing of this recorder, in the daemon's own words."""
    return f"the daemon at {address} refuses this recorder: {details}"


def _open_channel(address: str, access: Access) -> tuple[Any, Any]:
    """Import grpc and return it with a new channel.

    Its fork support is read at the import and at the first channel. It would write a line on stderr at each fork of
    the engine or, where somebody turned it on, wait for our threads: a forked child never uses this channel.
    """
    name = "GRPC_ENABLE_FORK_SUPPORT"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        import grpc

        options = [
            ("grpc.max_send_message_length", messages.MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", messages.MAX_MESSAGE_BYTES),
        ]
        return grpc, open_channel(grpc, address, access, options)
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
