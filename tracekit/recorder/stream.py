"""The recorder's end of the wire: batches go to tracekitd from a thread of their own, the engine never waits."""

import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tracekit import __version__
from tracekit.errors import TracekitError
from tracekit.recorder.guard import say, say_once
from tracekit.recorder.window import Window
from tracekit.rpc import messages, note
from tracekit.rpc.columns import Tables, count_rows, pack, slice_rows
from tracekit.rpc.methods import RECORDER, SERVICES
from tracekit.tables import SCHEMA_VERSION

SPLIT_BYTES = 16 << 20  # a larger batch is cut by rows, far below what a message may hold
FIRST_DELAY_SECS = 0.05
MAX_DELAY_SECS = 2.0
BEAT_SECS = 1.0

WINDOW_FULL = "the recorder's window is full"


@dataclass(frozen=True)
class Totals:
    """Rows by table since the stream began.

    Example:
        Totals(produced={"tokens": 4096}, lost={"tokens": 96}, undelivered={})
    """

    produced: dict[str, int]
    lost: dict[str, int]  # of these, given up
    undelivered: dict[str, int]  # of these, not confirmed by the daemon when the stream was closed


class _Link:
    """One connection: whether the daemon has answered the hello, and whether it is over."""

    def __init__(self) -> None:
        self.ready = False
        self.over = False


class Stream:
    """Delivers batches to one daemon, in order and exactly once, for as long as it takes.

    It belongs to the process that made it: in a forked child every method does nothing. No thread, and no import of
    grpc, before the first `put`.

    Args:
        address: `unix:/path/to.sock`.
        engine_id: 32 hex digits, one per engine process.
        max_bytes: un-acked bytes to keep; the newest batch is dropped and counted beyond it.
        on_state: called from the thread with "connected", "disconnected" or "refused".

    Attributes:
        on_command: called from the thread with each `messages.Command` that the daemon sends, more than once after a
            reconnect; what comes of it goes to `answer`. Without one, every command is answered with an error.
    """

    def __init__(
        self,
        address: str,
        engine_id: str,
        *,
        max_bytes: int = 256 << 20,
        on_state: Callable[[str], None] | None = None,
    ) -> None:
        self.address = address
        self.engine_id = engine_id
        self.on_command: Callable[[messages.Command], None] | None = None
        self._on_state = on_state
        self._pid = os.getpid()
        self._cond = threading.Condition()
        self._window = Window(engine_id, max_bytes)
        self._thread: threading.Thread | None = None
        self._call: Any = None
        self._given_up = ""  # why nothing will ever be sent again
        self._connected_once = False
        self._closing = False
        self._closed = False
        self._hopeless = False  # closing, and there never was a daemon
        self._rejected_seq = 0

    def put(self, tables: Tables) -> None:
        """Take the rows of `tables`; never blocks, never raises. The arrays are not kept."""
        if os.getpid() != self._pid:
            return
        try:
            self._put(tables)
        except Exception as error:
            say_once(f"a batch was malformed and is not recorded: {type(error).__name__}: {error}")

    def lose(self, rows: dict[str, int], reason: str) -> None:
        """Count rows by table that were lost before they came here; never blocks, never raises."""
        if os.getpid() != self._pid:
            return
        with self._cond:
            self._window.lose(rows, reason)
            self._begin()

    def answer(self, result: messages.CommandResult) -> None:
        """Tell the daemon, behind everything put before, how a command went; never blocks, never raises."""
        if os.getpid() != self._pid:
            return
        with self._cond:
            if not self._closing and not self._given_up:
                self._window.answer(result)
                self._cond.notify_all()

    def num_lost(self, table: str) -> int:
        """Return how many rows of a table were given up so far."""
        with self._cond:
            return self._window.lost[table]

    def close(self, timeout_secs: float) -> Totals:
        """Deliver what is kept, within `timeout_secs`, and say goodbye.

        Where no daemon was ever reached, one last failed attempt ends the wait. What stays undelivered is written as
        `undelivered-<engine_id>.json` beside the daemon's socket, for the daemon to count, and said on stderr. A
        second call only returns the totals.
        """
        if os.getpid() != self._pid:
            return Totals({}, {}, {})
        with self._cond:
            if not self._closing and self._window.seq and not self._given_up:
                self._window.finish()
                self._closing = True
                self._begin()
                self._cond.notify_all()
                self._cond.wait_for(
                    lambda: not len(self._window) or bool(self._given_up) or self._hopeless, timeout_secs
                )
            again, self._closed, self._closing = self._closed, True, True
            reason = self._given_up
            if len(self._window):
                reason = "no daemon answered" if self._hopeless else "the daemon did not confirm them in time"
            self._given_up = reason or "the stream is closed"
            self._cond.notify_all()
            window, call, self._call = self._window, self._call, None
            totals = Totals(dict(window.produced), dict(+window.lost), window.undelivered())
            unknown = window.unknown_to_daemon()
        if call is not None:
            call.cancel()
        if self._thread is not None:
            self._thread.join(0.2)
        if unknown and reason and not again:
            self._leave_note(unknown, reason)
        return totals

    def _put(self, tables: Tables) -> None:
        rows = count_rows(tables)
        if not rows:
            return
        with self._cond:
            reason = self._given_up or ("" if self._window.fits(0) else WINDOW_FULL)
        payload = b""
        if not reason:
            try:
                payload = pack(tables)
            except TracekitError as error:
                reason = str(error)
                say_once(f"a batch is not recorded: {reason}")
        if len(payload) > SPLIT_BYTES and max(rows.values()) > 1:
            self._put(slice_rows(tables, 0, 0.5))
            self._put(slice_rows(tables, 0.5, 1))
            return
        if len(payload) + (1 << 20) > messages.MAX_MESSAGE_BYTES:
            reason = "one row is larger than a message"
        with self._cond:
            reason = reason or self._given_up or ("" if self._window.fits(len(payload)) else WINDOW_FULL)
            if reason:
                self._window.lose(rows, reason)
            else:
                self._window.add(payload, rows)
            self._begin()
            self._cond.notify_all()

    def _begin(self) -> None:
        if self._thread is None and not self._given_up:
            self._thread = threading.Thread(target=self._run, name="tracekit-stream", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # the interpreter is shutting down
                self._thread = None
                self._given_up = str(error)

    def _run(self) -> None:
        delay = FIRST_DELAY_SECS
        while not self._given_up:
            last_try = self._closing
            try:
                answered = self._connect()
            except Exception as error:
                # a thread cannot be started at exit, or the machine is out of memory: the engine must not care
                say_once(f"the connection to the daemon failed: {type(error).__name__}: {error}")
                answered = False
            with self._cond:
                if last_try and not self._connected_once:
                    self._hopeless = True
                    self._cond.notify_all()
                delay = FIRST_DELAY_SECS if answered or self._closing else min(delay * 2, MAX_DELAY_SECS)
                closing = self._closing
                self._cond.wait_for(lambda: self._given_up or self._closing != closing, delay)  # noqa: B023

    def _connect(self) -> bool:
        """Use one connection until it ends; return whether the daemon answered."""
        path = self.address.removeprefix("unix:")
        if path == self.address:
            self._give_up(f"only unix: addresses are supported, not {self.address}")
            return False
        if not os.path.exists(path):
            return False
        try:
            grpc, channel = _open_channel(self.address)
        except ImportError as error:
            self._give_up(f"grpc cannot be imported here: {error}")
            return False
        link = _Link()
        record = SERVICES[RECORDER]["Record"].on(channel)
        try:
            call = record(self._outgoing(link))
            with self._cond:
                self._call = call
                if self._given_up:
                    call.cancel()
            for ack in call:
                self._acked(link, ack.durable_seq)
                for command in ack.commands:
                    self._obey(command)
        except grpc.RpcError as error:
            self._ended(grpc, link, error.code(), error.details())
        finally:
            with self._cond:
                link.over = True
                self._call = None
                self._cond.notify_all()
            channel.close()
            if link.ready:
                self._tell("disconnected")
        return link.ready

    def _outgoing(self, link: _Link) -> Iterator[bytes]:
        """What grpc sends, on a thread of its own: a hello, then, once answered, everything that is not acked."""
        hello = messages.Hello(protocol=messages.PROTOCOL, schema=SCHEMA_VERSION, recorder_version=__version__)
        yield messages.Batch(engine_id=self.engine_id, hello=hello).SerializeToString()
        while True:
            with self._cond:
                batch = self._window.next_unsent() if link.ready and not link.over else None
                while batch is None:
                    if link.over or self._given_up:
                        return
                    woken = self._cond.wait(BEAT_SECS)
                    if link.ready and not link.over:
                        if not woken:
                            self._window.beat()
                        batch = self._window.next_unsent()
            yield batch

    def _acked(self, link: _Link, durable_seq: int) -> None:
        with self._cond:
            self._window.ack(durable_seq)
            answered, link.ready = link.ready, True
            if not answered:
                self._window.rewind()
                self._connected_once = True
            self._cond.notify_all()
        if not answered:
            self._tell("connected")

    def _obey(self, command: messages.Command) -> None:
        try:
            if self.on_command is None:
                raise RuntimeError("this recorder takes no commands")
            self.on_command(command)
        except Exception as error:
            self.answer(messages.CommandResult(id=command.id, error=str(error) or type(error).__name__))

    def _ended(self, grpc: Any, link: _Link, code: Any, details: str) -> None:
        """Act on the status that ended a connection; for most it is enough to connect again."""
        malformed = code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.DATA_LOSS)
        if malformed and link.ready:
            with self._cond:
                first = self._window.first_seq()
                # one damaged on the way passes the second time; else it is the batch itself
                hopeless = first == self._rejected_seq and not (
                    first and self._window.reject_first(f"refused by the daemon: {details}")
                )
                self._rejected_seq = first
            if not hopeless:
                return
        if malformed or code in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED):
            self._give_up(f"the daemon at {self.address} refuses this recorder: {details}")

    def _give_up(self, reason: str) -> None:
        say(f"{reason}; nothing is recorded, the engine is untouched")
        with self._cond:
            self._given_up = reason
            self._window.abandon(reason)
            self._cond.notify_all()
        self._tell("refused")

    def _tell(self, state: str) -> None:
        if self._on_state is not None:
            try:
                self._on_state(state)
            except Exception as error:
                say_once(f"on_state failed: {type(error).__name__}: {error}")

    def _leave_note(self, rows: dict[str, int], reason: str) -> None:
        counts = ", ".join(f"{count} {table}" for table, count in sorted(rows.items()))
        say(f"engine {self.engine_id} could not deliver {counts} ({reason}): {self.address}")
        folder = note.folder_of(self.address)
        if folder is None or not folder.is_dir():
            return
        left = note.Note(
            engine_id=self.engine_id,
            from_seq=self._window.acked_seq + 1,
            to_seq=self._window.seq,
            reason=reason,
            rows=rows,
            produced=dict(self._window.produced),
        )
        try:
            note.write(folder, left)
        except OSError as error:
            say(f"the note about them cannot be written: {error}")


def _open_channel(address: str) -> tuple[Any, Any]:
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
            ("grpc.use_local_subchannel_pool", 1),  # or a new channel inherits the back-off of the last
            ("grpc.enable_http_proxy", 0),
        ]
        return grpc, grpc.insecure_channel(address, options=options)
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
