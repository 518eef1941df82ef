"""One engine's switch: orders come in on the desk's thread, and turn the recording on or off between two steps."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from tracekit.errors import UsageError
from tracekit.recorder.guard import failed, say
from tracekit.recorder.place import Order
from tracekit.recorder.settings import Options
from tracekit.recorder.vllm.recording import Recording
from tracekit.rpc.address import socket_of, tcp_of

CLOSE_SECS = 30.0  # for what a stopped recording has left to deliver; only the desk's thread waits

_recorded: weakref.WeakSet[Switch] = weakref.WeakSet()  # of this process, whose recordings are not over


class Engine(Protocol):
    """What a generation offers for one engine of its kind."""

    def about(self) -> dict[str, Any]:
        """Return what the engine is; on any thread."""

    def is_gone(self) -> bool:
        """Whether nobody holds the engine any more."""

    def is_idle(self) -> bool:
        """Whether it has no request."""

    def refuses(self, options: Options) -> str:
        """Return why it cannot be recorded so while it runs, or nothing; on any thread."""

    def at_boundary(self, turn: Callable[[], None]) -> None:
        """Call `turn` once on the engine's thread, before its next step."""

    def begin(self, options: Options) -> Recording | None:
        """Put the hooks in and open a recording in the middle of the engine's life; on the engine's thread."""

    def wind_up(self, recording: Recording) -> None:
        """Prepare the end of a recording; on the engine's thread, before a step."""

    def hooks_off(self) -> None:
        """Take the hooks out of this process, but for those that no step runs through."""


class Switch:
    """Turns one engine's recording on and off.

    Args:
        engine: the engine.
        recording: that it began with, if any.
    """

    def __init__(self, engine: Engine, recording: Recording | None) -> None:
        self._engine = engine
        self._recording = recording
        self._orders: deque[Order] = deque(maxlen=1)  # the engine's thread and the desk's: who pops it, does it
        self._error = ""
        if recording is not None:
            _recorded.add(self)

    def is_gone(self) -> bool:
        """Whether the engine has been let go of."""
        return self._engine.is_gone()

    def told(self, order: Order) -> str:
        """Take an order; return why it cannot be carried out, or nothing."""
        self._error = ""
        recording = self._recording
        if order.action == "look":
            return ""
        if order.action == "stop":
            if recording is None and not self._orders:
                return "it is not recorded"
            self._orders.append(order)
            self._engine.at_boundary(self._turn)
            if self._engine.is_idle() and recording is not None and not recording.options.asks_workers():
                self._turn()  # no step would come, and no worker need be told
            return ""
        if recording is not None:
            return f"it is recorded already, to {recording.stream.address}: stop that first"
        assert order.options is not None
        address = order.options.address
        if socket_of(address) is None and tcp_of(address) is None:
            return f"not an address of a daemon: {address}"
        if reason := self._engine.refuses(order.options):
            return reason
        self._orders.append(order)
        self._engine.at_boundary(self._turn)
        return ""

    def tend(self) -> dict[str, Any]:
        """Deliver what a stopped recording has left, take the hooks out; return what the engine is and does."""
        recording = self._recording
        if recording is not None and recording.over:
            recording.close(CLOSE_SECS)
            self._recording = None
            _recorded.discard(self)
            if not _recorded:
                self._engine.hooks_off()
            say(f"engine {recording.stream.engine_id} is no longer recorded")
        return {**self._engine.about(), **self._state()}

    def numbers(self) -> dict[str, Any]:
        """Return the engine's step, and rows by table that were produced and lost."""
        recording = self._recording
        if recording is None:
            return {}
        totals = recording.stream.totals()
        return {"engine_step": recording.engine_step, "produced": totals.produced, "lost": totals.lost}

    def _state(self) -> dict[str, Any]:
        recording = self._recording
        if recording is None:
            return {"state": "starting" if self._orders else "dormant", "failed": self._error}
        stopping = recording.stopping or bool(self._orders)
        found = {
            "state": "stopping" if stopping else "recording",
            "failed": recording.stream.gave_up() or recording.trouble,
            "daemon": recording.stream.address,
            "engine_id": recording.stream.engine_id,
            "since_step": recording.since_step,
        }
        return found

    def _turn(self) -> None:
        """Carry out the order that waits, if nobody else does."""
        try:
            order = self._orders.pop()
        except IndexError:
            return
        try:
            if order.action == "stop":
                if self._recording is not None:
                    self._engine.wind_up(self._recording)
                    self._recording.stop()
            elif order.options is not None and self._recording is None:
                _recorded.add(self)
                self._recording = self._engine.begin(order.options)
                if self._recording is None:
                    raise UsageError("this engine cannot be recorded")
                say(f"engine {self._recording.stream.engine_id} is recorded from step {self._recording.since_step} on")
        except Exception as error:
            _recorded.discard(self)
            self._error = str(error) or type(error).__name__
            failed(order.action, error)
