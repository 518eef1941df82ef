"""The recorder's end of the wire: batches go to tracekitd from a thread of their own, the engine never waits."""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tracekit.errors import TracekitError
from tracekit.recorder.connection import Connection, Ending, Then, refusal
from tracekit.recorder.guard import say, say_once
from tracekit.recorder.redact import Redaction
from tracekit.recorder.window import Window
from tracekit.rpc import messages, note
from tracekit.rpc.address import socket_of
from tracekit.rpc.columns import Tables, count_rows, pack, slice_rows
from tracekit.rpc.credentials import Access
from tracekit.rpc.identity import id_of

SPLIT_BYTES = 2 << 20  # a larger batch is cut by rows, below what a message may hold, and a quarter of the window
SMALL_BYTES = 8 << 10  # but not below this
FIRST_DELAY_SECS = 0.05
MAX_DELAY_SECS = 2.0
MAX_BYTES = 256 << 20
SHORT = 0.75  # share of the window beyond which whole new requests are shed
ROOM = 0.5  # share at which who gave up waiting begins to wait again
LOOK_SECS = 0.1

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


class _State(enum.Enum):
    """Where a stream is in its life; it only moves down."""

    OPEN = "open"
    CLOSING = "closing"  # what is kept is being delivered
    HOPELESS = "hopeless"  # the same, but there never was a daemon
    CLOSED = "closed"


class Stream:
    """Delivers batches to one daemon, in order and exactly once, for as long as it takes.

    It belongs to the process that made it: in a forked child every method does nothing. No thread, and no import of
    grpc, before the first `put`.

    Args:
        address: `unix:/path/to.sock` or `grpcs://HOST:PORT`.
        token: the secret of this engine process (`tracekit.rpc.identity`).
        access: token and certificates for `grpcs://`.
        max_bytes: un-acked bytes to keep; the newest batch is dropped and counted beyond it.
        on_state: called from the thread with "connected", "disconnected" or "refused".
        trainer: whether it is no engine that speaks, but a trainer that annotates.
        lossless: whether `put` waits where the window is full, instead of dropping; see `waits`.
        redaction: what rows go through before anything else is done with them; None: they are sent as they are.

    Attributes:
        engine_id: 32 hex digits, one per engine process.
        on_command: called from the thread with each `messages.Command` that the daemon sends, more than once after a
            reconnect; what comes of it goes to `answer`. Without one, every command is answered with an error.
    """

    def __init__(
        self,
        address: str,
        token: str,
        *,
        access: Access = Access(),  # noqa: B008 - it cannot change
        max_bytes: int = MAX_BYTES,
        on_state: Callable[[str], None] | None = None,
        trainer: bool = False,
        lossless: bool = False,
        redaction: Redaction | None = None,
    ) -> None:
        self.address = address
        self._redaction = redaction
        self.engine_id = id_of(token)
        self._token = token
        self._access = access
        self._trainer = trainer
        self._lossless = lossless
        self._gave_up = False
        self._split_bytes = min(SPLIT_BYTES, max(max_bytes // 4, SMALL_BYTES))
        self.on_command: Callable[[messages.Command], None] | None = None
        self._on_state = on_state
        self._pid = os.getpid()
        self._cond = threading.Condition()
        self._window = Window(self.engine_id, max_bytes)
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._state = _State.OPEN
        self._ended = ""  # why nothing will be sent any more
        self._noting = threading.Lock()

    def put(self, tables: Tables, kept: Callable[[int], None] | None = None) -> None:
        """Take the rows of `tables`; never blocks, never raises. The arrays are not kept.

        Args:
            tables: the rows.
            kept: called with the number of the last batch that they became, before that one can leave.
        """
        if os.getpid() != self._pid:
            return
        try:
            self._put(self._redacted(tables), kept)
        except Exception as error:
            say_once(f"a batch was malformed and is not recorded: {type(error).__name__}: {error}")
            self.lose({}, f"malformed: {type(error).__name__}")

    def lose(self, rows: dict[str, int], reason: str) -> None:
        """Count rows by table that were lost before they came here; never blocks, never raises."""
        if os.getpid() != self._pid:
            return
        with self._cond:
            self._window.lose(rows, reason)
            self._begin()
            is_late = self._state is _State.CLOSED
        if is_late:
            self._leave_note(reason)

    def answer(self, result: messages.CommandResult) -> None:
        """Tell the daemon, behind everything put before, how a command went; never blocks, never raises."""
        if os.getpid() != self._pid:
            return
        with self._cond:
            if self._state is _State.OPEN and not self._ended:
                self._window.answer(result)
                self._cond.notify_all()

    def is_short(self) -> bool:
        """Whether the window is so full that new requests are better left out; not where it is waited for room."""
        with self._cond:
            return not self._waits() and self._window.share() > SHORT

    def waits(self) -> bool:
        """Whether `put` waits for room in the window: not once it is known that there will be none."""
        with self._cond:
            return self._waits()

    def stop_waiting(self, for_good: bool = False) -> None:
        """Drop and count what finds no place, until half of the window is free again, or for good."""
        with self._cond:
            self._gave_up = True
            self._lossless = self._lossless and not for_good
            self._cond.notify_all()

    def last_seq(self) -> int:
        """Return the number of the last batch or loss."""
        with self._cond:
            return self._window.seq

    def totals(self) -> Totals:
        """Return the rows by table so far."""
        with self._cond:
            window = self._window
            return Totals(dict(window.produced), dict(+window.lost), window.undelivered())

    def gave_up(self) -> str:
        """Return why nothing will be sent any more; empty where that is not so."""
        return self._ended

    def num_lost(self, table: str) -> int:
        """Return how many rows of a table were given up so far."""
        with self._cond:
            return self._window.lost[table]

    def close(self, timeout_secs: float, whole: bool = True) -> Totals:
        """Deliver what is kept, within `timeout_secs`, and say goodbye, unless rows may be missing that nobody counted.

        Where no daemon was ever reached, one last failed attempt ends the wait. What stays undelivered is noted
        (`tracekit.rpc.note`) beside the daemon's socket, for the daemon to count, and said on stderr. What is lost
        afterwards is noted too. A second call only returns the totals.
        """
        if os.getpid() != self._pid:
            return Totals({}, {}, {})
        with self._cond:
            if self._state is _State.OPEN and self._window.seq and not self._ended:
                self._deliver(timeout_secs, whole)
            again = self._state is _State.CLOSED
            reason = self._ended
            if len(self._window):
                hopeless = self._state is _State.HOPELESS
                reason = "no daemon answered" if hopeless else "the daemon did not confirm them in time"
            self._state, self._ended = _State.CLOSED, reason or "the stream is closed"
            self._cond.notify_all()
            window, connection = self._window, self._connection
            totals = self.totals()
            unknown = window.unknown_to_daemon()
        if connection is not None:
            connection.end()
        if self._thread is not None:
            self._thread.join(0.2)
        if unknown and not again:
            reason = reason or "they came after the goodbye"
            counts = ", ".join(f"{count} {table}" for table, count in sorted(unknown.items()))
            say(f"engine {self.engine_id} could not deliver {counts} ({reason}): {self.address}")
            self._leave_note(reason)
        return totals

    def _deliver(self, timeout_secs: float, whole: bool) -> None:
        if whole:
            self._window.finish()
        self._state = _State.CLOSING
        self._begin()
        self._cond.notify_all()
        self._cond.wait_for(
            lambda: not len(self._window) or self._ended or self._state is _State.HOPELESS, timeout_secs
        )

    def _redacted(self, tables: Tables) -> Tables:
        if self._redaction is None:
            return tables
        try:
            return self._redaction.redact(tables)
        except Exception as error:
            say_once(f"a batch cannot be redacted and is not recorded: {type(error).__name__}: {error}")
            self.lose(count_rows(tables), f"not redactable: {type(error).__name__}")
            return {}

    def _put(self, tables: Tables, kept: Callable[[int], None] | None) -> None:
        rows = count_rows(tables)
        if not rows:
            return
        with self._cond:
            reason = self._wait_for(0)
        payload = b""
        if not reason:
            try:
                payload = pack(tables)
            except Exception as error:  # also what no table is to blame for: no descriptor or memory is left
                reason = str(error) if isinstance(error, TracekitError) else f"not encodable: {type(error).__name__}"
                say_once(f"a batch is not recorded: {error}")
        if len(payload) > self._split_bytes and max(rows.values()) > 1:
            self._put(slice_rows(tables, 0, 0.5), None)
            self._put(slice_rows(tables, 0.5, 1), kept)
            return
        if len(payload) > messages.MAX_PAYLOAD_BYTES:
            reason = "one row is larger than a batch may be"
        with self._cond:
            reason = reason or self._wait_for(len(payload))
            if reason:
                self._window.lose(rows, reason)
            else:
                self._window.add(payload, rows)
                if kept is not None:
                    kept(self._window.seq)
            self._begin()
            self._cond.notify_all()
            is_late = self._state is _State.CLOSED
        if is_late:
            self._leave_note(reason)

    def _refusal(self, size: int) -> str:
        """Why a payload of `size` bytes cannot be kept; empty where it can."""
        # one row that is larger than the window has room in an empty one, where nothing may be dropped
        fits = self._window.fits(size) or (self._lossless and not len(self._window))
        return self._ended or ("" if fits else WINDOW_FULL)

    def _waits(self) -> bool:
        self._gave_up = self._gave_up and self._window.share() > ROOM
        return self._lossless and not self._gave_up and not self._ended and self._state is _State.OPEN

    def _wait_for(self, size: int) -> str:
        """Return the same, after a lossless stream has waited for the room."""
        while (reason := self._refusal(size)) == WINDOW_FULL and len(self._window) and self._waits():
            self._cond.wait(LOOK_SECS)
        return reason

    def _begin(self) -> None:
        if self._thread is None and not self._ended:
            self._thread = threading.Thread(target=self._run, name="tracekit-stream", daemon=True)
            try:
                self._thread.start()
            except RuntimeError as error:  # the interpreter is shutting down
                self._thread = None
                self._ended = str(error)

    def _run(self) -> None:
        delay, ever_answered = FIRST_DELAY_SECS, False
        while not self._ended:
            last_try = self._state is not _State.OPEN
            answered = self._connect()
            ever_answered = ever_answered or answered
            with self._cond:
                if last_try and not ever_answered and self._state is _State.CLOSING:
                    self._state = _State.HOPELESS
                    self._cond.notify_all()
                is_open = self._state is _State.OPEN
                delay = FIRST_DELAY_SECS if answered or not is_open else min(delay * 2, MAX_DELAY_SECS)
                self._cond.wait_for(
                    lambda: self._ended or (self._state is _State.OPEN) != is_open,  # noqa: B023
                    delay,
                )

    def _connect(self) -> bool:
        """Use one connection until it ends; return whether the daemon answered."""
        connection = Connection(
            self.address,
            self._access,
            self._token,
            self._trainer,
            self._window,
            self._cond,
            lambda: self._tell("connected"),
            self._obey,
        )
        with self._cond:
            if self._ended:
                return False
            self._connection = connection
        try:
            self._act_on(connection.run())
        except Exception as error:
            # a thread cannot be started at exit, or the machine is out of memory: the engine must not care
            say_once(f"the connection to the daemon failed: {type(error).__name__}: {error}")
        if connection.answered:
            self._tell("disconnected")
        return connection.answered

    def _act_on(self, ending: Ending) -> None:
        if ending.then is Then.SUSPECT:
            with self._cond:
                if self._window.refused(ending.reason):
                    return
            self._give_up(refusal(self.address, ending.reason))
        elif ending.then is Then.GIVE_UP:
            self._give_up(ending.reason)

    def _obey(self, command: messages.Command) -> None:
        try:
            if self.on_command is None:
                raise RuntimeError("this recorder takes no commands")
            self.on_command(command)
        except Exception as error:
            self.answer(messages.CommandResult(id=command.id, error=str(error) or type(error).__name__))

    def _give_up(self, reason: str) -> None:
        say(f"{reason}; nothing is recorded, the engine is untouched")
        with self._cond:
            self._ended = reason
            self._window.abandon(reason)
            self._cond.notify_all()
        self._tell("refused")

    def _tell(self, state: str) -> None:
        if self._on_state is not None:
            try:
                self._on_state(state)
            except Exception as error:
                say_once(f"on_state failed: {type(error).__name__}: {error}")

    def _leave_note(self, reason: str) -> None:
        socket = socket_of(self.address)
        if socket is None or not socket.parent.is_dir():
            return
        with self._noting:  # or an older note could take the place of a newer one
            with self._cond:
                window, rows = self._window, self._window.unknown_to_daemon()
                left = note.Note(self.engine_id, window.acked_seq + 1, window.seq, reason, rows, dict(window.produced))
            try:
                if rows:
                    note.write(socket, left)
            except OSError as error:
                say_once(f"the note about them cannot be written: {error}")
