"""One engine's recording: the engine's thread appends references, a background thread encodes and sends them."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

from tracekit.recorder.guard import failures, say_once
from tracekit.recorder.pace import Pace, Stall
from tracekit.rpc.idle import Marker
from tracekit.tables import SHED

Tables = dict[str, dict[str, Any]]
Claim = Callable[[int], None]  # takes the number of a batch

DRAIN_SECS = 0.05  # references are packed this often, so that they do not keep the engine's objects alive
SEND_SECS = 0.5  # a batch goes out this often, or when it is full
SEND_TOKENS = 8192
CLOSE_SECS = 5.0
GRACE_SECS = 0.5  # for the background thread, once nothing is left for it
NOTE_SECS = 2.0  # beyond its time, a sink says goodbye or notes what it could not deliver
REST_SECS = 0.05  # between two batches that go out because the engine fell idle
MAX_EVENTS = 4096  # of an engine: a step is one

LATE = "it came after the recording had ended"
UNFINISHED = "the recorder did not come to it before its time was up"


class _Sent(NamedTuple):
    """The event that `Session.after_sent` queues."""

    done: Callable[[], None]


class Encoder(Protocol):
    """Turns events into table rows; all but `count` on the background thread only."""

    def add(self, event: Any) -> None:
        """Collect the rows of an event."""

    def count(self, event: Any) -> dict[str, int]:
        """Return the rows by table that an event stands for; on any thread."""

    def num_tokens(self) -> int:
        """Return the token rows collected since the last `take`, those of prompts too."""

    def pending(self) -> dict[str, int]:
        """Return the rows by table collected since the last `take`."""

    def take(self) -> Tables:
        """Return the rows collected so far as columns, and start anew."""

    def take_orphans(self) -> dict[str, int]:
        """Return the rows by table whose request is not known, since the last call."""

    def take_shed(self) -> dict[str, int]:
        """Return the rows by table of requests that were left out as a whole, since the last call."""

    def num_live(self) -> int:
        """Return the requests that have not come to their end."""


class Sink(Protocol):
    """Where batches go: `tracekit.recorder.stream.Stream`, or a list in a test."""

    def put(self, tables: Tables, kept: Claim | None = None) -> None:
        """Send columns, or keep them until they can be sent; `kept` is called before the last of them can leave."""

    def lose(self, rows: dict[str, int], reason: str) -> None:
        """Count rows as lost."""

    def last_seq(self) -> int:
        """Return the number of the last batch or loss."""

    def close(self, timeout_secs: float, whole: bool = True) -> Any:
        """Send what is there within the time, and end; `whole`: nothing is missing that was not counted as lost."""


class Session:
    """Hands events from the engine's thread to a sink without ever blocking or raising.

    An engine that falls idle is sent for at once, and marked so: whoever kills it then loses nothing.

    Args:
        encoder: turns events into tables.
        sink: takes encoded tables.
        marker: where to mark that the engine is idle; None: nowhere.
        max_events: that may wait for the encoder; beyond, the newest are dropped and counted; None: `MAX_EVENTS`.
        pace: makes the engine wait instead of dropping anything; None: it never waits.
    """

    def __init__(
        self,
        encoder: Encoder,
        sink: Sink,
        marker: Marker | None = None,
        *,
        max_events: int | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._given_max = max_events
        self._pace = pace
        self._encoder = encoder
        self._sink = sink
        self._events: deque[Any] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._over = False  # nobody encodes any more
        self._closed = threading.Lock()  # taken once, by who closes
        self._ended = threading.Event()
        self._lost: dict[str, dict[str, int]] = {}  # rows by table, by reason
        self._lost_lock = threading.Lock()  # held for an addition or a swap, and only where something is lost
        self._num_failures = len(failures())  # of this process's hooks, that are told or not ours to tell
        self._last_send = time.monotonic()
        self._marker = marker
        self._at_rest = False  # everything is told, and whatever is appended next takes that back
        self._last_rest = -REST_SECS
        self._pid = os.getpid()
        self._owner: weakref.ref[Any] | None = None
        self._on_gone: Callable[[], None] = lambda: None
        self.last_look: Callable[[], str] = lambda: ""  # tells, behind the last event, what is missing
        self._thread = threading.Thread(target=self._run, name="tracekit-recorder", daemon=True)
        self._thread.start()
        atexit.register(self.close)
        # a forked child has our memory but not our thread: it must neither append nor close
        ours = weakref.ref(self)  # what is registered here stays for ever
        os.register_at_fork(after_in_child=lambda: _forget(ours()))

    def end_with(self, owner: Any, on_gone: Callable[[], None]) -> None:
        """Call `on_gone` on the background thread, deliver what is queued and end, once nobody has `owner` any more."""
        self._on_gone, self._owner = on_gone, weakref.ref(owner)

    def append(self, event: Any) -> None:
        """Queue one event: an append of references, about a microsecond, on the engine's thread.

        Where the queue is full the event is dropped and its rows are counted as lost.
        """
        if self._is_full() and not (self._pace is not None and self._pace.holds()):
            self.lose(event, "recorder queue full")
            return
        self._events.append(event)
        if self._at_rest:  # looked at behind the append, or `_rest` could miss the event
            self._stir()
        if self._over:  # also behind it, or the last sweep could miss the event
            self._sweep(LATE)

    def _is_full(self) -> bool:
        return len(self._events) >= (self._given_max or MAX_EVENTS)

    def lose(self, event: Any, reason: str) -> None:
        """Count the rows of an event as lost; also on the engine's thread."""
        self._count(event, reason)
        if self._at_rest:
            self._stir()
        if self._over:
            self._sweep(LATE)

    def _count(self, event: Any, reason: str) -> dict[str, int]:
        rows = self._count_of(event)
        if rows is None:
            rows, reason = {}, f"{reason}, and its rows could not be counted"
        elif not any(rows.values()):
            return rows  # a loss without rows would be one of nobody knows how many
        with self._lost_lock:
            lost = self._lost.setdefault(reason, {})
            for table, count in rows.items():
                lost[table] = lost.get(table, 0) + count
        return rows

    def wait(self) -> Stall | None:
        """Let a lossless recorder catch up, on the engine's thread; return how long it took, None where it did not."""
        return None if self._pace is None else self._pace.wait(self._events)

    def hurry(self) -> None:
        """Let the background thread have a look now: the engine may have fallen idle."""
        self._wake.set()

    def after_sent(self, done: Callable[[], None]) -> bool:
        """Call `done` on the background thread once what was appended before is with the sink, or lost and counted.

        Returns:
            False where it will not be called: the queue is full, or the session ends.
        """
        if self._closing or self._is_full():
            return False
        self._events.append(_Sent(done))
        return True

    def close(self, timeout_secs: float = CLOSE_SECS) -> None:
        """Encode and deliver what is queued, within `timeout_secs`; safe to call twice."""
        if os.getpid() != self._pid:
            return
        if not self._closed.acquire(blocking=False):
            if not self._ended.wait(timeout_secs + NOTE_SECS):
                self._end(0.1)  # at exit, whoever is closing it with more time would be cut off
            return
        atexit.unregister(self.close)
        deadline = time.monotonic() + timeout_secs
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_secs if self._pace is None else timeout_secs / 2)
        if self._pace is not None and self._thread.is_alive():
            self._pace.end()  # what still finds no place is lost and counted
            self._thread.join(max(0.1, deadline - time.monotonic()))
        self._end(max(0.1, deadline - time.monotonic()))

    def _end(self, timeout_secs: float) -> None:
        try:
            self._over = True
            self._sweep(UNFINISHED)
            if self._thread is not threading.current_thread():
                self._thread.join(GRACE_SECS)  # it has at most one event left, and what it has encoded
            self._sink.close(timeout_secs, whole=not self._is_encoding())
        finally:
            self._ended.set()

    def _is_encoding(self) -> bool:
        return self._thread is not threading.current_thread() and self._thread.is_alive()

    def _sweep(self, reason: str) -> None:
        """Count as lost what nobody will encode any more; on any thread."""
        if os.getpid() != self._pid:
            self._events.clear()
            say_once("an engine goes on in a forked process: this is not recorded")
            return
        while (event := self._next()) is not None:
            if type(event) is not _Sent and self._count(event, reason).get("tokens") and reason == LATE:
                say_once("an engine goes on after its recording has ended: this is not recorded")
        self._tell_lost()

    def _count_of(self, event: Any) -> dict[str, int] | None:
        """Return the rows by table that an event stands for; None where nobody knows."""
        try:
            return self._encoder.count(event)
        except Exception:
            return None

    def _next(self) -> Any:
        """Return the oldest event; None where there is none, or another thread was faster."""
        try:
            return self._events.popleft()
        except IndexError:
            return None

    def forget(self) -> None:
        """Let go of everything, in a forked child."""
        self._closing = self._over = True
        self._at_rest = False
        self._events.clear()
        # a thread that we have not may have held their locks
        self._wake, self._lost_lock = threading.Event(), threading.Lock()
        atexit.unregister(self.close)

    def _run(self) -> None:
        closing = False
        while not closing:
            self._wake.wait(DRAIN_SECS)
            self._wake.clear()
            gone = self._owner is not None and self._owner() is None
            closing = self._closing or gone
            try:
                if gone:
                    self._on_gone()
                    self._closing = True
                self._drain()
                if closing and (reason := self.last_look()):
                    self._sink.lose({}, reason)
            except Exception as error:
                # this thread must live: without it the queue fills up and nothing more is recorded
                say_once(f"events could not be drained: {type(error).__name__}: {error}")
                self._sink.lose({}, f"not drained: {type(error).__name__}")
        if gone and self._closed.acquire(blocking=False):
            self._end(CLOSE_SECS)
            if self._marker is not None:
                self._marker.close()
            atexit.unregister(self.close)

    def _drain(self) -> None:
        while (event := self._next()) is not None:
            if type(event) is _Sent:
                self._tell_lost()
                self._send()
                event.done()
                continue
            try:
                self._encoder.add(event)
            except Exception as error:
                say_once(f"an event could not be encoded: {type(error).__name__}: {error}")
                self._sink.lose(self._count_of(event) or {}, f"not encodable: {type(error).__name__}")
            # let the engine have the interpreter between two steps
            time.sleep(0)
            if self._encoder.num_tokens() >= SEND_TOKENS:
                self._send()
        self._tell_lost()
        now = time.monotonic()
        rests = not (self._at_rest or self._encoder.num_live())
        due = now - self._last_send >= SEND_SECS or (rests and now - self._last_rest >= REST_SECS)
        if self._closing or due:
            claim = self._rest() if rests else None
            self._send(claim)
            if claim is not None:
                claim(self._sink.last_seq())

    def _rest(self) -> Claim | None:
        """Return what marks that everything is told, up to a batch, unless an event comes meanwhile."""
        self._last_rest = time.monotonic()
        marker = self._marker
        num_busy = marker.num_busy if marker is not None else 0
        self._at_rest = True
        if self._events or self._lost:
            self._at_rest = False
            return None
        return None if marker is None else partial(marker.claim, num_busy)

    def _stir(self) -> None:
        """Take the mark back, on the engine's thread."""
        self._at_rest = False
        if self._marker is not None:
            self._marker.busy()

    def _tell_lost(self) -> None:
        if self._owner is not None:  # an engine's
            for reason in failures()[self._num_failures :]:
                self._num_failures += 1
                self._sink.lose({}, reason)
        if self._lost:
            with self._lost_lock:
                lost, self._lost = self._lost, {}
            for reason, rows in lost.items():
                self._sink.lose(rows, reason)

    def _send(self, kept: Claim | None = None) -> None:
        self._last_send = time.monotonic()
        orphans = self._encoder.take_orphans()
        if orphans:
            self._sink.lose(orphans, "the admission of the request, or a step of it, was not seen")
        if shed := self._encoder.take_shed():
            self._sink.lose(shed, SHED)
        pending = self._encoder.pending()
        try:
            tables = self._encoder.take()
        except Exception as error:
            say_once(f"a batch could not be encoded: {type(error).__name__}: {error}")
            self._sink.lose(pending, f"not encodable: {type(error).__name__}")
            return
        if tables:
            self._sink.put(tables, kept)


def _forget(session: Session | None) -> None:
    if session is not None:
        session.forget()
