"""What the daemon asks of an engine: done once each, on the stream's thread, and answered behind its rows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from tracekit.rpc import messages

REMEMBERED = 1024  # ids of commands; the daemon repeats only those that it got no answer to

# Appends a label row for the present weights; returns its weight version and engine step. Any thread may call it.
Label = Callable[[str, str | None], tuple[int, int]]


class Queue(Protocol):
    """The part of `tracekit.recorder.session.Session` that is needed here."""

    def after_sent(self, done: Callable[[], None]) -> bool:
        """Call `done` behind the rows that were queued so far; False where the queue is full."""


class Line(Protocol):
    """The part of `tracekit.recorder.stream.Stream` that is needed here."""

    on_command: Callable[[messages.Command], None] | None

    def answer(self, result: messages.CommandResult) -> None:
        """Send a result behind the rows that are there."""

    def num_lost(self, table: str) -> int:
        """Return how many rows of a table were lost so far."""


class Commands:
    """Takes one engine's commands from its stream.

    Args:
        stream: gives commands and takes answers.
        session: where the rows of a command go.
        label: appends a row of the table `weights` for a label.
    """

    def __init__(self, stream: Line, session: Queue, label: Label) -> None:
        self._stream = stream
        self._session = session
        self._label = label
        self._seen: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        stream.on_command = self.take

    def take(self, command: messages.Command) -> None:
        """Do a command, unless it was done before.

        Raises:
            Exception: it cannot be done; the stream answers so.
        """
        with self._lock:
            if command.id in self._seen:
                return
            self._seen[command.id] = None
            if len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
        if not command.HasField("mark_weights"):
            raise RuntimeError("this recorder does not know the command")
        self._mark(command.id, command.mark_weights)

    def _mark(self, command_id: str, mark: messages.MarkWeights) -> None:
        lost = self._stream.num_lost("weights")
        version, engine_step = self._label(mark.label, mark.checkpoint or None)
        result = messages.CommandResult(id=command_id, weight_version=version, engine_step=engine_step)

        def sent() -> None:
            if self._stream.num_lost("weights") > lost:
                result.error = "its row was lost"
            self._stream.answer(result)

        if not self._session.after_sent(sent):
            raise RuntimeError("the recorder's queue is full or the engine is ending")
