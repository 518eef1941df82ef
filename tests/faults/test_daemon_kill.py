"""Daemons and engines that die, stop or never come: nothing twice, and produced = stored + lost to the row."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest

from helpers.factories import make_tables, write_spool
from helpers.wire import DaemonProcess, all_tables, assert_conserved, engine_id, numbered_tokens, rows_of_trace
from tracekit.recorder.stream import Stream
from tracekit.rpc.client import ControlClient
from tracekit.rpc.columns import count_rows
from tracekit.trace.reader import open_trace
from tracekit.trace.spool import SpoolWriter
from tracekitd.catalog import Catalog
from tracekitd.sealing import seal_spool
from tracekitd.server import _sealed_before

CLOSE_SECS = 60.0
ROWS = 50


def token_ids(path) -> list[int]:
    return [row[2] for row in rows_of_trace(path, "tokens")]


class Producer(threading.Thread):
    """Puts numbered tokens into a stream until it is told to end."""

    def __init__(self, stream: Stream, pause_secs: float = 0.02) -> None:
        super().__init__()
        self.stream = stream
        self.pause_secs = pause_secs
        self.ended = threading.Event()
        self.rows = 0

    def run(self) -> None:
        while not self.ended.wait(self.pause_secs):
            self.stream.put(numbered_tokens(self.rows, ROWS))
            self.rows += ROWS

    def wait_for_rows(self, rows: int) -> None:
        while self.rows < rows:
            self.ended.wait(0.01)

    def end(self) -> int:
        self.ended.set()
        self.join()
        return self.rows


def wait_durable(address: str, seq: int = 1) -> None:
    with ControlClient(address) as client:
        while not any(engine.durable_seq >= seq for engine in client.list_engines()):
            client.flush()


def test_killed_again_and_again_nothing_is_lost_and_nothing_comes_twice(daemon):
    daemon.start()
    producer = Producer(Stream(daemon.address, engine_id()))
    producer.start()
    for round_number in range(1, 5):
        wait_durable(daemon.address, 20 * round_number)  # kill it while it works
        daemon.kill()
        producer.wait_for_rows(producer.rows + 10 * ROWS)
        daemon.start()
    rows = producer.end()
    totals = producer.stream.close(CLOSE_SECS)
    assert totals.produced == {"tokens": rows} and not totals.lost and not totals.undelivered
    assert daemon.stop() == 0
    assert token_ids(daemon.out) == list(range(rows))
    assert open_trace(daemon.out).complete


@pytest.mark.parametrize("kill", [True, False])
def test_a_window_that_overflows_meanwhile_loses_exactly_what_it_says(daemon, kill):
    """The daemon is killed, or stopped, for longer than the window lasts, with rows in every table."""
    daemon.start()
    stream = Stream(daemon.address, engine_id(), max_bytes=200_000)
    produced = Counter()

    def put(count):
        for seed in range(count):
            tables = all_tables(20, seed, num_requests=50)
            produced.update(count_rows(tables))
            stream.put(tables)

    put(5)
    wait_durable(daemon.address, 5)
    daemon.kill() if kill else daemon.signal(signal.SIGSTOP)
    put(100)
    daemon.start() if kill else daemon.signal(signal.SIGCONT)
    with ControlClient(daemon.address) as client:
        # told by a beat, since nothing else is sent
        while not client.list_engines()[0].totals.lost:
            client.flush()
    put(5)
    totals = stream.close(CLOSE_SECS)
    assert totals.produced == produced and not totals.undelivered
    assert totals.lost["tokens"] > 0
    assert daemon.stop() == 3
    assert assert_conserved(daemon.out, produced) == totals.lost
    assert {loss["reason"] for loss in open_trace(daemon.out).losses()} == {"the recorder's window is full"}


def test_a_stopped_daemon_cannot_hold_the_engine_at_its_end(daemon):
    daemon.start()
    stream = Stream(daemon.address, engine_id())
    stream.put(numbered_tokens(0, ROWS))
    wait_durable(daemon.address)
    daemon.signal(signal.SIGSTOP)
    for start in range(ROWS, 20 * ROWS, ROWS):
        stream.put(numbered_tokens(start, ROWS))
    totals = stream.close(1.0)
    assert totals.undelivered == {"tokens": 19 * ROWS}
    (note,) = daemon.socket.parent.glob("*.undelivered-*.json")
    daemon.signal(signal.SIGCONT)
    # what lay in the socket's buffer arrives after all, the rest is counted, and both together are everything
    assert daemon.stop() in (0, 3)
    stored = token_ids(daemon.out)
    assert stored == list(range(len(stored))) and len(stored) >= ROWS
    assert_conserved(daemon.out, totals.produced)
    assert not note.exists()


def test_a_daemon_that_is_never_there_costs_a_note_that_the_next_one_counts(daemon):
    daemon.socket.parent.mkdir(mode=0o700)
    stream = Stream(daemon.address, engine_id())
    produced = Counter()
    for seed in range(3):
        tables = all_tables(10, seed, num_requests=50)
        produced.update(count_rows(tables))
        stream.put(tables)
    assert stream.close(CLOSE_SECS).undelivered == produced
    daemon.start()
    other = Stream(daemon.address, engine_id())
    other.put(numbered_tokens(0, ROWS))
    other.close(CLOSE_SECS)
    produced.update({"tokens": ROWS})
    assert daemon.stop() == 3
    lost = assert_conserved(daemon.out, produced)
    assert produced - lost == {"tokens": ROWS}
    assert len(open_trace(daemon.out).engines()) <= 2


def test_a_daemon_that_comes_late_gets_everything(daemon):
    stream = Stream(daemon.address, engine_id())
    for start in range(0, 20 * ROWS, ROWS):
        stream.put(numbered_tokens(start, ROWS))
    daemon.start()
    totals = stream.close(CLOSE_SECS)
    assert not totals.undelivered and not totals.lost
    assert daemon.stop() == 0
    assert token_ids(daemon.out) == list(range(20 * ROWS))


def test_a_daemon_killed_and_not_replaced_leaves_what_it_confirmed(daemon):
    daemon.start()
    stream = Stream(daemon.address, engine_id())
    stream.put(numbered_tokens(0, ROWS))
    wait_durable(daemon.address)
    daemon.kill()
    stream.put(numbered_tokens(ROWS, ROWS))
    totals = stream.close(1.0)
    assert totals.undelivered["tokens"] >= ROWS
    assert token_ids(daemon.spool) == list(range(ROWS))
    daemon.start()  # it seals what the first one wrote
    assert daemon.stop() == 3
    assert assert_conserved(daemon.out, totals.produced) == {"tokens": ROWS}


def test_an_engine_that_is_killed_leaves_an_open_end(daemon):
    daemon.start()
    program = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from helpers.wire import numbered_tokens
from tracekit.recorder.stream import Stream
stream = Stream({daemon.address!r}, "{engine_id()}")
start = 0
while True:
    stream.put(numbered_tokens(start, {ROWS}))
    start += {ROWS}
    time.sleep(0.005)
"""
    engine = subprocess.Popen([sys.executable, "-c", program])
    try:
        wait_durable(daemon.address, 20)
    finally:
        engine.kill()
        engine.wait()
    assert daemon.stop() == 3
    stored = token_ids(daemon.out)
    assert stored == list(range(len(stored))) and len(stored) >= 20 * ROWS
    (loss,) = open_trace(daemon.out).losses()
    assert loss["reason"].startswith("open end")


def test_a_program_that_ends_without_close_is_not_held_up(daemon):
    """Daemon threads and an open channel must not keep, or crash, an interpreter that is going down."""
    daemon.start()
    program = f"""
import sys, threading
sys.path[:0] = {sys.path!r}
from helpers.wire import numbered_tokens
from tracekit.recorder.stream import Stream
up = threading.Event()
stream = Stream({daemon.address!r}, "{engine_id()}", on_state=lambda state: up.set())
stream.put(numbered_tokens(0, {ROWS}))
up.wait()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("fork_support", [None, "1"])
def test_an_engine_that_forks_while_connected_is_not_disturbed(daemon, fork_support):
    daemon.start()
    # without the helpers of `wire`, which import grpc before the stream does
    program = f"""
import os, sys, threading
import numpy as np
from tracekit.recorder.stream import Stream
from tracekit.rpc.columns import WIRE_TABLES
tables = {{"scheduled": {{name: np.arange({ROWS}) for name in WIRE_TABLES["scheduled"]}}}}
up = threading.Event()
stream = Stream({daemon.address!r}, "{engine_id()}", on_state=lambda state: up.set())
stream.put(tables)
up.wait()
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        stream.put(tables)
        stream.close(60.0)
        sys.exit(0)
    assert os.waitpid(pid, 0)[1] == 0
stream.put(tables)
assert not stream.close(60.0).undelivered
assert os.environ.get("GRPC_ENABLE_FORK_SUPPORT") == {fork_support!r}
"""
    environ = {name: value for name, value in os.environ.items() if name != "GRPC_ENABLE_FORK_SUPPORT"}
    environ |= {"GRPC_ENABLE_FORK_SUPPORT": fork_support} if fork_support else {}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert daemon.stop() == 0
    assert len(rows_of_trace(daemon.out, "scheduled")) == 2 * ROWS


def test_closing_at_exit_delivers(daemon):
    daemon.start()
    program = f"""
import atexit, sys
sys.path[:0] = {sys.path!r}
from helpers.wire import numbered_tokens
from tracekit.recorder.stream import Stream
stream = Stream({daemon.address!r}, "{engine_id()}")
atexit.register(stream.close, 60.0)
stream.put(numbered_tokens(0, {ROWS}))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert daemon.stop() == 0
    assert token_ids(daemon.out) == list(range(ROWS))


def test_a_note_counts_where_nothing_is_sealed_too(short_path):
    daemon = DaemonProcess(short_path, seal=False)
    daemon.socket.parent.mkdir(mode=0o700)
    stream = Stream(daemon.address, engine_id())
    stream.put(numbered_tokens(0, ROWS))
    assert stream.close(CLOSE_SECS).undelivered == {"tokens": ROWS}
    daemon.start()
    assert daemon.stop() == 0
    assert not list(daemon.socket.parent.glob("*undelivered*"))
    (loss,) = open_trace(daemon.spool).losses()
    assert loss["rows"] == {"tokens": ROWS} and loss["reason"] == "no daemon answered"


class Killed(BaseException):
    """In the place of SIGKILL: nothing cleans up after it."""


@pytest.mark.parametrize("where", ["before it is removed", "before it is moved", "before it is cleared"])
def test_killed_when_all_is_sealed_the_next_daemon_says_so_and_ends(where, tmp_path, monkeypatch):
    folder, out = write_spool(tmp_path / "spool", [make_tables()]), tmp_path / "out.arrow"
    (folder / ".part-000000-000001.arrow.0a1b2c3d.tmp").touch()  # of one who was killed before
    spool = SpoolWriter(folder)

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        owner, name = {
            "before it is removed": (SpoolWriter, "remove"),
            "before it is moved": (type(folder), "rename"),
            "before it is cleared": (type(folder), "rmdir"),
        }[where]
        patched.setattr(owner, name, killed)
        with pytest.raises(Killed):
            seal_spool(spool, out, tmp_path / "d.sock", Catalog(spool.resume()))
    spool._hold.release()  # a kill does
    before = out.read_bytes()
    if folder.exists():
        assert _sealed_before(folder, out) == 0
    assert not folder.exists() and out.read_bytes() == before and not open_trace(out).all_losses()
    # what was left of one is in nobody's way
    with SpoolWriter(folder) as again:
        again.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.arrow"]
