"""The session between the engine's thread and the wire: nothing blocks, nothing raises, everything is counted."""

import threading
import time
from collections import Counter
from typing import Any

import pytest

from tracekit.recorder import session as module
from tracekit.recorder.session import Session


class Encoder:
    """Counts events; one that says so cannot be encoded, one that says so waits."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.hold = threading.Event()
        self.hold.set()

    def add(self, event: tuple[Any, ...]) -> None:
        self.hold.wait(10)
        if event[0] == "bad":
            raise ValueError("no")
        self.events.append(event)

    def count(self, event: tuple[Any, ...]) -> dict[str, int]:
        return {"tokens": event[1]}

    def num_tokens(self) -> int:
        return sum(e[1] for e in self.events)

    def pending(self) -> dict[str, int]:
        return {"tokens": self.num_tokens()}

    def take(self) -> dict[str, Any]:
        taken, self.events = self.events, []
        return {"tokens": taken} if taken else {}

    def take_orphans(self) -> dict[str, int]:
        return {}


class Sink:
    def __init__(self) -> None:
        self.stored: list[Any] = []
        self.lost: Counter[str] = Counter()
        self.reasons: set[str] = set()
        self.closed = 0

    def put(self, tables: dict[str, Any]) -> None:
        self.stored += tables["tokens"]

    def lose(self, rows: dict[str, int], reason: str) -> None:
        self.lost.update(rows)
        self.reasons.add(reason)

    def close(self, timeout_secs: float) -> None:
        self.closed += 1


def test_everything_appended_is_stored_in_order_once_closed() -> None:
    sink = Sink()
    session = Session(Encoder(), sink)
    for i in range(1000):
        session.append(("e", i))
    session.close()
    session.close()
    assert sink.stored == [("e", i) for i in range(1000)] and sink.closed == 1 and not sink.lost
    session.append(("e", 1))  # after the end: nothing happens


def test_a_full_queue_drops_the_newest_and_counts_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 10)
    encoder, sink = Encoder(), Sink()
    encoder.hold.clear()
    session = Session(encoder, sink)
    for _ in range(100):
        begin = time.monotonic()
        session.append(("e", 3))
        assert time.monotonic() - begin < 5  # the stuck encoder is not waited for
    encoder.hold.set()
    session.close()
    assert len(sink.stored) * 3 + sink.lost["tokens"] == 300 and sink.lost["tokens"] > 0
    assert sink.reasons == {"recorder queue full"}


def test_an_event_that_cannot_be_encoded_is_counted_and_the_rest_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    sink = Sink()
    session = Session(Encoder(), sink)
    session.append(("e", 1))
    session.append(("bad", 5))
    session.append(("e", 2))
    session.close()
    assert [e[1] for e in sink.stored] == [1, 2] and sink.lost == {"tokens": 5}
    assert "could not be encoded" in capsys.readouterr().err
