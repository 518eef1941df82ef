"""The loss policy: whole requests are shed first, then steps dropped; a lossless recorder waits, and says how long."""

import threading
import time
from collections import Counter
from typing import Any

import pytest

from helpers.wire import numbered_tokens
from tracekit.recorder import pace as module
from tracekit.recorder import settings
from tracekit.recorder.pace import Pace
from tracekit.recorder.session import Session
from tracekit.recorder.stream import Stream
from tracekit.recorder.vllm.columns import Columns
from tracekit.recorder.vllm.events import TableRow
from tracekit.recorder.vllm.recording import Recording

NOBODY = "unix:/nowhere/d.sock"


def filled(share: float, **options: Any) -> Stream:
    """A stream whose window is full to this share, and whose daemon is away."""
    stream = Stream(NOBODY, "ab" * 16, max_bytes=100_000, **options)
    stream._begin = lambda: None  # type: ignore[method-assign]
    number = 0
    while stream._window.share() < share - 0.02:
        stream.put(numbered_tokens(number, 10))
        number += 10
    return stream


def test_the_window_is_short_over_three_quarters_and_not_where_it_is_waited_for_room() -> None:
    assert not filled(0.74).is_short() and filled(0.8).is_short()
    stream = filled(0.8, lossless=True)
    assert not stream.is_short() and stream.waits()
    stream.stop_waiting()
    assert stream.is_short() and not stream.waits()
    stream._window.ack(stream._window.seq // 2)
    assert stream.waits() and not stream.is_short()  # there is room again
    stream.stop_waiting(for_good=True)
    stream._window.ack(stream._window.seq)
    assert not stream.waits()


def test_a_lossless_put_waits_for_an_ack_and_one_that_is_not_drops() -> None:
    lossy = filled(1.0)
    for number in range(20):
        lossy.put(numbered_tokens(number, 10))
    assert lossy.num_lost("tokens") > 0
    stream = filled(1.0, lossless=True)
    before = stream.last_seq()
    writer = threading.Thread(target=lambda: [stream.put(numbered_tokens(n, 10)) for n in range(20)], daemon=True)
    writer.start()
    time.sleep(0.3)
    assert writer.is_alive() and stream.num_lost("tokens") == 0
    with stream._cond:
        stream._window.ack(before)
        stream._cond.notify_all()
    writer.join(20)
    assert not writer.is_alive() and stream.num_lost("tokens") == 0 and stream.last_seq() >= before + 20


def test_a_batch_that_is_larger_than_the_window_is_cut_and_waits_in_parts() -> None:
    stream = filled(0.1, lossless=True)
    writer = threading.Thread(target=stream.put, args=(numbered_tokens(0, 20_000),), daemon=True)
    writer.start()
    while writer.is_alive():
        with stream._cond:
            stream._window.ack(stream._window.seq)
            stream._cond.notify_all()
        time.sleep(0.01)
    assert stream.num_lost("tokens") == 0 and stream._window.produced["tokens"] >= 20_000


@pytest.mark.parametrize("end", ["stop", "refused", "close"])
def test_who_waits_is_let_go_where_there_will_be_no_room(end: str) -> None:
    stream = filled(1.0, lossless=True)
    writer = threading.Thread(target=lambda: [stream.put(numbered_tokens(n, 10)) for n in range(20)], daemon=True)
    writer.start()
    time.sleep(0.2)
    if end == "stop":
        stream.stop_waiting()
    elif end == "refused":
        stream._give_up("another protocol")
    else:
        stream.close(0.1)
    writer.join(20)
    assert not writer.is_alive()
    if end != "close":  # who puts behind the end is not asked any more
        produced, lost = stream._window.produced["tokens"], stream._window.lost["tokens"]
        assert lost > 0 and produced == lost + stream._window.undelivered().get("tokens", 0)


class Encoder(Columns):
    """Each event is a row of `control`."""

    def add(self, event: TableRow) -> None:
        self._append(event.table, event.row)

    def count(self, event: TableRow) -> dict[str, int]:
        return {event.table: 1}

    def num_tokens(self) -> int:
        return sum(len(c["name"]) for c in self._rows.values() if "name" in c) * 100

    def take_orphans(self) -> dict[str, int]:
        return {}

    take_shed = take_orphans

    def num_live(self) -> int:
        return 1


ROW = {"engine_step": 0, "time_ns": 0, "name": "x" * 500, "arguments": "{}", "answer": "{}"}


def run(recording: Recording, steps: int) -> None:
    for _ in range(steps):
        recording.session.append(TableRow("control", ROW))
        recording.wait()
        recording.engine_step += 1


def made(stream: Stream, max_stall_secs: float) -> tuple[Session, Recording]:
    session = Session(Encoder(), stream, pace=Pace(stream, max_stall_secs))
    return session, Recording(session)


def conserved(stream: Stream, rows: dict[str, int]) -> None:
    stored = Counter(stream._window.produced) - stream._window.lost
    for table, count in rows.items():
        assert stored[table] + stream._window.lost[table] == count, table


def test_a_lossless_engine_waits_between_steps_and_the_trace_says_how_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AHEAD", 8)
    stream = filled(0.9, lossless=True)
    session, recording = made(stream, 60)
    engine = threading.Thread(target=run, args=(recording, 600), daemon=True)
    engine.start()
    time.sleep(0.5)
    assert engine.is_alive()  # it waits for the daemon
    while engine.is_alive():
        with stream._cond:
            stream._window.ack(stream._window.seq)
            stream._cond.notify_all()
        time.sleep(0.01)
    with stream._cond:
        stream._window.ack(stream._window.seq)
    session.close(1)
    conserved(stream, {"control": 600})
    assert not +stream._window.lost and stream._window.produced["stalls"] >= 1


def test_an_engine_that_may_wait_no_longer_goes_on_and_rows_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "AHEAD", 8)
    stream = filled(0.9, lossless=True)
    session, recording = made(stream, 0.2)
    begin = time.monotonic()
    run(recording, 600)
    assert 0.2 <= time.monotonic() - begin < 10
    assert capsys.readouterr().err.count("now rows are dropped") == 1
    session.close(1)
    conserved(stream, {"control": 600})
    assert stream._window.lost["control"] > 0


def test_an_engine_that_ends_while_its_recorder_waits_loses_no_count(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = filled(0.9, lossless=True)
    session, recording = made(stream, 60)
    run(recording, 200)  # fewer than it may be ahead
    counted, close = [], stream.close

    def count(timeout_secs: float, whole: bool = True) -> Any:
        counted.append(stream._window.produced["control"])
        return close(timeout_secs, whole)

    monkeypatch.setattr(stream, "close", count)
    begin = time.monotonic()
    session.close(2)
    assert time.monotonic() - begin < 10 and counted == [200]
    conserved(stream, {"control": 200})


def test_where_nothing_is_said_nobody_waits() -> None:
    session = Session(Encoder(), filled(0.9))
    begin = time.thread_time()
    for _ in range(10_000):
        assert session.wait() is None
    assert time.thread_time() - begin < 1
    session.close(1)


def test_settings_of_the_policy(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("LOSSLESS", "MAX_STALL_MS", "WINDOW_BYTES"):
        monkeypatch.delenv(f"TRACEKIT_{name}", raising=False)
    assert (settings.is_lossless(), settings.max_stall_ms(), settings.window_bytes()) == (False, 60_000, 256 << 20)
    monkeypatch.setenv("TRACEKIT_LOSSLESS", "1")
    monkeypatch.setenv("TRACEKIT_MAX_STALL_MS", "0")
    monkeypatch.setenv("TRACEKIT_WINDOW_BYTES", "nonsense")
    assert (settings.is_lossless(), settings.max_stall_ms(), settings.window_bytes()) == (True, 0, 256 << 20)
    (tmp_path / "tracekit.toml").write_text('max_stall_ms = "1500"\nwindow_bytes = "1"\n')
    monkeypatch.delenv("TRACEKIT_MAX_STALL_MS")
    monkeypatch.delenv("TRACEKIT_WINDOW_BYTES")
    assert (settings.max_stall_ms(), settings.window_bytes()) == (1500, 64 << 10)
