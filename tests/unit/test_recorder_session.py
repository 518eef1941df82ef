"""The session between the engine's thread and the wire: nothing blocks, nothing raises, everything is counted."""

import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tracekit.recorder import session as module
from tracekit.recorder.guard import failed
from tracekit.recorder.session import Session
from tracekit.rpc import idle
from tracekit.rpc.idle import Marker


class Encoder:
    """Counts events; one that says so cannot be encoded, one that says so waits."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.live = 0
        self.hold = threading.Event()
        self.hold.set()

    def add(self, event: tuple[Any, ...]) -> None:
        self.hold.wait(10)
        if event[0] == "bad":
            raise ValueError("no")
        self.live += {"begin": 1, "end": -1}.get(event[0], 0)
        self.events.append(event)

    def count(self, event: tuple[Any, ...]) -> dict[str, int]:
        if event[1] is None:
            raise ValueError("no number")
        return {"tokens": event[1]}

    def num_tokens(self) -> int:
        return sum(e[1] for e in self.events)

    def pending(self) -> dict[str, int]:
        return {"tokens": self.num_tokens()}

    def take(self) -> dict[str, Any]:
        taken, self.events = self.events, []
        return {"tokens": taken} if taken else {}

    def num_live(self) -> int:
        return self.live

    def take_orphans(self) -> dict[str, int]:
        return {}

    def take_shed(self) -> dict[str, int]:
        return {}


class Sink:
    def __init__(self) -> None:
        self.stored: list[Any] = []
        self.lost: Counter[str] = Counter()
        self.reasons: set[str] = set()
        self.closed = 0
        self.whole = True
        self.num_losses = 0
        self.batches: list[int] = []

    def put(self, tables: dict[str, Any], kept: Callable[[int], None] | None = None) -> None:
        self.stored += tables["tokens"]
        self.batches.append(len(tables["tokens"]))
        if kept is not None:
            kept(len(self.batches))

    def last_seq(self) -> int:
        return len(self.batches)

    def lose(self, rows: dict[str, int], reason: str) -> None:
        self.lost.update(rows)
        self.num_losses += 1
        self.reasons.add(reason)

    def close(self, timeout_secs: float, whole: bool = True) -> None:
        self.closed += 1
        self.whole = whole


def stuck() -> tuple[Encoder, Sink, Session]:
    """A session whose encoder waits until its `hold` is set."""
    encoder, sink = Encoder(), Sink()
    encoder.hold.clear()
    return encoder, sink, Session(encoder, sink)


def test_everything_appended_is_stored_in_order_once_closed(capsys: pytest.CaptureFixture[str]) -> None:
    sink = Sink()
    session = Session(Encoder(), sink)
    for i in range(1000):
        session.append(("e", i))
    session.close()
    session.close()
    assert sink.stored == [("e", i) for i in range(1000)] and sink.closed == 1 and not sink.lost
    session.append(("e", 0))  # after the end
    assert not capsys.readouterr().err and not sink.num_losses
    for _ in range(2):
        session.append(("e", 1))
    assert capsys.readouterr().err.count("after its recording has ended") == 1
    session.lose(("e", 4), "not seen")
    assert sink.lost == {"tokens": 6} and sink.reasons == {module.LATE, "not seen"}


def test_what_comes_while_it_ends_is_stored_or_counted() -> None:
    encoder, sink = Encoder(), Sink()
    session = Session(encoder, sink)
    num_appended, over = 0, threading.Event()

    def engine() -> None:
        nonlocal num_appended
        while not over.is_set():
            session.append(("e", 1))
            num_appended += 1
            time.sleep(0)

    thread = threading.Thread(target=engine)
    thread.start()
    until(lambda: num_appended > 100)
    session.close()
    until(lambda: sink.lost["tokens"] > 100)
    over.set()
    thread.join()
    assert len(sink.stored) + sink.lost["tokens"] == num_appended and sink.whole


def test_what_a_failed_hook_left_out_is_a_loss_of_its_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tracekit.recorder.guard._failures", {})
    monkeypatch.delenv("TRACEKIT_STRICT", raising=False)
    failed("before", ValueError())
    sinks, owner = [Sink(), Sink()], Encoder()
    sessions = [Session(Encoder(), sink) for sink in sinks]  # an engine's, and a trainer's
    sessions[0].end_with(owner, lambda: None)
    for hook in ("schedule", "add_request", "schedule"):
        failed(hook, ValueError())
    for session in sessions:
        session.close()
    what = "the hook {} failed (ValueError): what it would have recorded is missing"
    assert [sink.reasons for sink in sinks] == [{what.format("schedule"), what.format("add_request")}, set()]


def test_what_the_time_does_not_suffice_for_is_counted_or_no_goodbye_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECS", 0.1)
    encoder, sink, session = stuck()
    for _ in range(10):
        session.append(("e", 3))
    session.close(0.2)
    assert sink.closed == 1 and not sink.whole  # nobody knows what becomes of the one that it is at
    encoder.hold.set()
    session._thread.join(20)
    assert len(sink.stored) * 3 + sink.lost["tokens"] == 30 and sink.lost["tokens"] >= 27
    assert sink.reasons == {module.UNFINISHED}


def test_what_cannot_even_be_counted_is_a_loss_and_keeps_no_session_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECS", 0.1)
    encoder, sink, session = stuck()
    for number in (1, None, 3):
        session.append(("e", number))
    until(lambda: len(session._events) == 2)  # it is at the first
    session.lose(("e", None), "not seen")
    session.close(0.2)
    encoder.hold.set()
    assert sink.closed == 1 and sink.lost == {"tokens": 3}
    more = ", and its rows could not be counted"
    assert sink.reasons == {module.UNFINISHED, module.UNFINISHED + more, "not seen" + more}


def test_with_its_owner_a_session_ends_and_leaves_no_descriptor(tmp_path: Path) -> None:
    class Owner:
        pass

    sink, owner, socket = Sink(), Owner(), tmp_path / "d.sock"
    session = Session(Encoder(), sink, Marker(socket, ENGINE))
    session.end_with(owner, lambda: session.append(("e", 7)))
    for kind in ("begin", "end"):
        session.append((kind, 1))
    deadline = time.monotonic() + 30
    while idle.read(socket, ENGINE) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    del owner
    session._thread.join(30)
    assert [event for event, _ in sink.stored] == ["begin", "end", "e"] and sink.closed == 1
    open_files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not [path for path in open_files if path.startswith(str(tmp_path))]


def test_at_exit_whoever_closes_it_already_is_let_finish(monkeypatch: pytest.MonkeyPatch) -> None:
    class Owner:
        pass

    class Late(Sink):
        """Takes its time, and then notes what it could not deliver."""

        begun = threading.Event()

        def close(self, timeout_secs: float, whole: bool = True) -> None:
            self.begun.set()
            time.sleep(timeout_secs + 0.5)
            super().close(timeout_secs)

    monkeypatch.setattr(module, "CLOSE_SECS", 0.2)
    for by_thread in (True, False):
        sink, owner = Late(), Owner()
        sink.begun.clear()
        session = Session(Encoder(), sink)
        session.end_with(owner, lambda: None)
        if by_thread:
            del owner
        else:
            threading.Thread(target=session.close, args=(0.2,)).start()
        assert sink.begun.wait(30)
        session.close(0.2)
        assert sink.closed == 1
    sink.closed = 0
    session = Session(Encoder(), sink)
    sink.begun.clear()
    threading.Thread(target=session.close, args=(30,), daemon=True).start()
    assert sink.begun.wait(30)
    monkeypatch.setattr(module, "NOTE_SECS", 0.2)
    session.close(0.2)  # which closes it now
    assert sink.closed == 1


def test_a_full_queue_drops_the_newest_and_counts_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_EVENTS", 10)
    encoder, sink, session = stuck()
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
    session.append(("bad", None))  # and nobody can say how many rows it stands for
    session.append(("e", 2))
    session.last_look = lambda: "an end was not seen"
    session.close()
    assert [e[1] for e in sink.stored] == [1, 2] and sink.lost == {"tokens": 5}
    assert sink.reasons == {"not encodable: ValueError", "an end was not seen"} and sink.num_losses == 3
    assert "could not be encoded" in capsys.readouterr().err


ENGINE = "ab" * 16


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_an_engine_that_falls_idle_is_sent_for_at_once_and_marked(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SEND_SECS", 1000)
    monkeypatch.setattr(module, "DRAIN_SECS", 1000)
    sink = Sink()
    session = Session(Encoder(), sink, Marker(tmp_path / "d.sock", ENGINE))
    session.append(("begin", 1))
    session.append(("e", 1))
    session.hurry()
    time.sleep(0.1)
    assert not sink.batches and idle.read(tmp_path / "d.sock", ENGINE) is None
    session.append(("end", 1))
    session.hurry()
    until(lambda: idle.read(tmp_path / "d.sock", ENGINE) == 1)
    assert sink.batches == [3]
    session.append(("begin", 1))
    assert idle.read(tmp_path / "d.sock", ENGINE) is None  # on the engine's thread, whatever the other one is doing
    session.append(("end", 1))
    session.close()
    # who is killed while it ends was idle
    assert sink.batches == [3, 2] and idle.read(tmp_path / "d.sock", ENGINE) == 2


def test_what_is_lost_takes_the_mark_back_too(tmp_path: Any) -> None:
    session = Session(Encoder(), Sink(), Marker(tmp_path / "d.sock", ENGINE))
    until(lambda: idle.read(tmp_path / "d.sock", ENGINE) == 0)
    session.lose(("e", 1), "not seen")
    assert idle.read(tmp_path / "d.sock", ENGINE) is None
    session.close()


def test_an_event_while_the_mark_is_made_is_not_missed(tmp_path: Any) -> None:
    """The engine's thread appends at the worst moments: before the claim is written, and while its file is made."""

    class Late(Sink):
        def last_seq(self) -> int:
            session.append(("begin", 1))
            return super().last_seq()

    session = Session(Encoder(), Late(), Marker(tmp_path / "d.sock", ENGINE))
    until(lambda: list(tmp_path.iterdir()) or session._marker.num_busy)  # type: ignore[union-attr]
    for _ in range(20):
        assert idle.read(tmp_path / "d.sock", ENGINE) is None
        time.sleep(0.01)
    session.close()
    assert idle.read(tmp_path / "d.sock", ENGINE) is None


def test_short_requests_one_after_another_are_no_storm_of_batches(tmp_path: Any) -> None:
    sink = Sink()
    session = Session(Encoder(), sink, Marker(tmp_path / "d.sock", ENGINE))
    begin, count = time.monotonic(), 0
    while time.monotonic() - begin < 0.5:
        session.append(("begin", 1))
        session.append(("end", 1))
        session.hurry()
        count += 1
        time.sleep(0.001)
    took = time.monotonic() - begin
    session.close()
    assert sum(sink.batches) == 2 * count > 100 and len(sink.batches) <= took / module.REST_SECS + 2
