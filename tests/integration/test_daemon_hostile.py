"""A client without manners, against a real tracekitd: it costs a bounded amount, harms nobody else, and is told why."""

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from helpers.wire import (
    DaemonProcess,
    Sent,
    all_tables,
    batch,
    engine_id,
    hello,
    numbered_tokens,
    record,
    rows_of_tables,
    rows_of_trace,
)
from tracekit.recorder.stream import Stream
from tracekit.rpc import messages
from tracekit.rpc.client import ControlClient, wait_ready
from tracekit.rpc.methods import RECORDER, SERVICES
from tracekit.trace.reader import open_trace
from tracekitd import service
from tracekitd.service import HELLO_SECS, MAX_GREETING, MAX_STREAMS

TOKENS = numbered_tokens(0, 10)
CLOSE_SECS = 60.0


def memory(process: DaemonProcess, what: str = "VmHWM") -> int:
    """Bytes of resident memory; the highest there were so far."""
    lines = Path(f"/proc/{process.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) << 10


def cpu_secs(process: DaemonProcess) -> float:
    fields = Path(f"/proc/{process.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_compressed_messages_are_refused(daemon):
    before = memory(daemon)
    identity, bomb = engine_id(), bytes(messages.MAX_MESSAGE_BYTES - 100)
    with grpc.insecure_channel(daemon.address, compression=grpc.Compression.Gzip) as channel:
        call = SERVICES[RECORDER]["Record"].on(channel)(iter([hello(identity).to_bytes(), bomb]))
        assert call.code() == grpc.StatusCode.UNIMPLEMENTED and "'gzip' is disabled" in call.details()
    assert memory(daemon) - before < 16 << 20


@pytest.mark.parametrize(
    "field",
    [b"\x1a\x00", b"\x32\x00", b"\x4a\x00", b"\x2a\x02\x0a\x00", b"\x32\x02\x22\x00"],
    ids=["unknown", "losses", "results", "produced", "rows of losses"],
)
def test_millions_of_empty_messages_cost_what_their_bytes_cost(shared, field):
    """33 million of them were 65 kB on the wire once, 2.8 GB of memory and seven seconds."""
    identity = engine_id()
    head = batch(identity, 1, {}).batch.SerializeToString()
    head += field * ((messages.MAX_HEAD_BYTES - len(head)) // len(field))
    longer = head + field * (1 << 20)
    wait_ready(shared.address, 10)
    memory_before, cpu_before = memory(shared), cpu_secs(shared)
    for sent in (head, longer):
        record(shared.address, [hello(identity), Head(sent).to_bytes()])
    assert memory(shared) - memory_before < 64 << 20
    assert cpu_secs(shared) - cpu_before < 2.0


class Head(Sent):
    """A frame around bytes that need not be a batch."""

    def __init__(self, head: bytes) -> None:
        super().__init__(self)
        self.SerializeToString = lambda: head


def test_many_empty_lists_do_not_stop_the_others(shared):
    """As many rows as a frame takes: the loop goes on meanwhile."""
    rows = 40_000
    requests = {name: values[:1] for name, values in all_tables(1)["requests"].items()}
    many = {
        name: [values[0] if name != "prompt_token_ids" else np.zeros(0, "u4")] * rows
        if isinstance(values, list)
        else np.zeros(rows, "u4" if name != "time_ns" else "i8")
        for name, values in requests.items()
    }
    many |= {name: [""] * rows for name in ("request_id", "external_id")}
    many |= {name: ["{}"] * rows for name in ("labels", "sampling_params")}
    many |= {name: [None] * rows for name in ("parent_id", "lora", "lora_id", "lora_path", "cache_salt")}
    longest, over = [0.0], threading.Event()

    def ask():
        with ControlClient(shared.address) as client:
            while not over.is_set():
                begin = time.monotonic()
                client.describe()
                longest[0] = max(longest[0], time.monotonic() - begin)

    asking = threading.Thread(target=ask)
    asking.start()
    identity = engine_id()
    acks, status, details = record(shared.address, [hello(identity), batch(identity, 1, {"requests": many})])
    over.set()
    asking.join()
    assert (acks[-1], status) == (1, grpc.StatusCode.OK), details
    assert longest[0] < 1.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One daemon for all that send nonsense: it must survive them."""
    process = DaemonProcess(tmp_path_factory.mktemp("d"), seal=False)
    try:
        yield process.start()
        assert process.process.poll() is None
        assert "Traceback" not in process.stderr(), process.stderr()
    finally:
        process.end()


def test_a_prompt_that_no_frame_holds_comes_in_pieces(daemon):
    tables = all_tables(1, seed=3)
    tables["requests"]["prompt_token_ids"] = [np.arange(3_000_000, dtype="u4")]
    stream = Stream(daemon.address, engine_id())
    stream.put(TOKENS)
    stream.put(tables)
    stream.put(numbered_tokens(10, 10))
    assert not stream.close(CLOSE_SECS).lost
    assert daemon.stop() == 0
    assert rows_of_trace(daemon.out, "requests") == rows_of_tables(tables, "requests")
    assert open_trace(daemon.out).complete


def test_a_batch_of_which_pieces_are_missing_keeps_nobody_waiting_for_long(short_path):
    process = DaemonProcess(short_path)
    process.argv[1:3] = ["-c", "from tracekitd import service, __main__; service.PIECES_SECS = 1; __main__.main()"]
    try:
        process.start()
        over = threading.Event()
        slow, honest = engine_id(), engine_id()

        def half(identity):
            yield hello(identity).to_bytes()
            made = batch(identity, 1, TOKENS)
            made.batch.piece, made.batch.pieces = 0, 2
            yield made.to_bytes()
            over.wait()

        with grpc.insecure_channel(process.address) as channel:
            call = SERVICES[RECORDER]["Record"].on(channel)(half(slow))
            assert next(call).durable_seq == 0
            whole = batch(honest, 1, TOKENS)
            parts = [Sent(messages.Batch.FromString(whole.batch.SerializeToString())) for _ in range(2)]
            for number, part in enumerate(parts):
                part.batch.piece, part.batch.pieces = number, 2
                part.payload = whole.payload[number * 100 :] if number else whole.payload[:100]
            acks, status, _ = record(process.address, [hello(honest), *parts])
            assert (acks[-1], status) == (1, grpc.StatusCode.OK)
            assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED and "within 1 seconds" in call.details()
            over.set()
    finally:
        process.end()


def test_the_bytes_of_all_streams_together_are_bounded(short_path):
    """The disk is stopped: what comes in meanwhile stays below the budget, and all of it is there in the end."""
    process = DaemonProcess(short_path)
    program = "from tracekitd import service, __main__; service.MAX_QUEUED_BYTES = 8 << 20; __main__.main()"
    process.argv[1:3] = ["-c", program]
    tables = {"tokens": {name: np.repeat(values, 4000) for name, values in TOKENS["tokens"].items()}}
    try:
        process.start()
        streams = [Stream(process.address, engine_id()) for _ in range(4)]
        streams[0].put(TOKENS)
        with ControlClient(process.address) as client:
            while not any(engine.durable_seq for engine in client.list_engines()):
                client.flush()
        size = max(path.stat().st_size for path in process.spool.glob("hot-*"))
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        before = memory(process)
        for _ in range(20):
            for stream in streams:
                stream.put(tables)  # 80 times 1.2 MB
        time.sleep(3)
        assert memory(process) - before < 64 << 20
        resource.prlimit(process.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert [stream.close(CLOSE_SECS).lost for stream in streams] == [{}] * 4
        assert process.stop() == 0
        assert open_trace(process.out).table("tokens").num_rows == 80 * 40_000 + 10
    finally:
        process.end()


def test_nobody_can_speak_for_another_engine(daemon):
    identity = engine_id()
    thief = type(identity)(identity)
    thief.token = engine_id().token
    first = batch(identity, 1, TOKENS)
    assert record(daemon.address, [hello(identity), first])[0][-1] == 1
    ahead = batch(identity, 10_000, TOKENS, {"tokens": 100_000})
    for sent in ([hello(thief), ahead], [hello(str(identity)), ahead]):
        acks, status, details = record(daemon.address, sent)
        assert (acks, status) == ([], grpc.StatusCode.PERMISSION_DENIED) and "another recorder" in details
    other = engine_id()  # who has a stream of its own cannot use it for another either
    acks, status, _ = record(daemon.address, [hello(other), ahead])
    assert (acks, status) == ([0], grpc.StatusCode.INVALID_ARGUMENT)
    daemon.kill()
    daemon.start()  # it is not the memory of the daemon that holds this
    assert record(daemon.address, [hello(thief), ahead])[1] == grpc.StatusCode.PERMISSION_DENIED
    acks, status, _ = record(daemon.address, [hello(identity), batch(identity, 2, TOKENS, {"tokens": 20}, last=True)])
    assert (acks, status) == ([1, 2], grpc.StatusCode.OK)
    assert daemon.stop() == 0 and open_trace(daemon.out).complete


@pytest.mark.parametrize("flip", ["seq", "totals", "losses", "last"])
def test_the_checksum_covers_all_that_is_said(shared, flip):
    identity = engine_id()
    made = batch(identity, 1, TOKENS)
    honest = made.to_bytes()
    if flip == "seq":
        made.batch.seq = 3
    elif flip == "totals":
        made.batch.totals.produced["tokens"] = 11
    elif flip == "losses":
        made.batch.losses.add(from_seq=1, to_seq=1, rows={"tokens": 1})
    else:
        made.batch.last = True
    made.crc = messages.Frame.FromString(honest).crc
    acks, status, details = record(shared.address, [hello(identity), made])
    assert (acks, status) == ([0], grpc.StatusCode.DATA_LOSS) and "does not match its checksum" in details


def test_an_engine_has_one_stream_and_the_newest_is_it(shared):
    """Its hellos do not take the places of others, and what the old connection still sends counts for nothing."""
    identity, over = engine_id(), threading.Event()

    def silent():
        yield hello(identity).to_bytes()
        over.wait()

    with grpc.insecure_channel(shared.address) as channel:
        stub = SERVICES[RECORDER]["Record"].on(channel)
        calls = [stub(silent()) for _ in range(MAX_STREAMS + 10)]
        newest = calls[-1]
        for call in calls:
            assert next(call).durable_seq == 0
        assert {call.code() for call in calls[:-1]} == {grpc.StatusCode.ABORTED}
        assert newest.is_active()
        with ControlClient(shared.address) as client:
            assert [engine.open for engine in client.list_engines() if engine.engine_id == identity] == [True]
        over.set()
        assert newest.code() == grpc.StatusCode.OK
    with ControlClient(shared.address) as client:  # it never sent anything
        assert identity not in [engine.engine_id for engine in client.list_engines()]


def test_streams_that_never_say_hello_are_few_end_and_keep_nobody_out(short_path):
    """Whoever opens more of them ends the oldest: who says hello at once is let in, however many are silent."""
    process = DaemonProcess(short_path)
    process.argv[1:3] = ["-c", "from tracekitd import service, __main__; service.HELLO_SECS = 4; __main__.main()"]
    try:
        process.start()
        over = threading.Event()

        def silent():
            over.wait()
            yield b""

        with grpc.insecure_channel(process.address) as channel:
            stub = SERVICES[RECORDER]["Record"].on(channel)
            calls = [stub(silent()) for _ in range(MAX_GREETING + 5)]
            codes = []
            while len(codes) < 5:
                codes = [call.code() for call in calls if not call.is_active()]
            assert set(codes) == {grpc.StatusCode.RESOURCE_EXHAUSTED} and any(call.is_active() for call in calls)
            assert record(process.address, [hello(engine_id())])[1] == grpc.StatusCode.OK
            ended = [call for call in calls if call.code() == grpc.StatusCode.DEADLINE_EXCEEDED]
            assert len(ended) == MAX_GREETING - 1 and "begins with a hello" in ended[0].details()
            over.set()
    finally:
        process.end()
    assert HELLO_SECS == service.HELLO_SECS == 10.0


def test_a_deleted_lock_lets_no_second_daemon_in(daemon, short_path):
    daemon.socket.with_name("d.sock.lock").unlink()
    for stopped in (False, True):
        if stopped:
            daemon.signal(signal.SIGSTOP)
        argv = [sys.executable, "-m", "tracekitd", "--listen", daemon.address, "--spool", str(short_path / "other")]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1 and "whose lock was deleted" in done.stderr and "Traceback" not in done.stderr
    daemon.signal(signal.SIGCONT)
    wait_ready(daemon.address, 10)


def test_a_link_in_place_of_the_lock_touches_nothing(short_path):
    victim = short_path / "victim"
    victim.write_text("mine")
    (short_path / "run").mkdir(mode=0o700)
    (short_path / "run/d.sock.lock").symlink_to(victim)
    argv = [sys.executable, "-m", "tracekitd", "--listen", f"unix:{short_path}/run/d.sock"]
    done = subprocess.run([*argv, "--spool", str(short_path / "s")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "cannot take the lock" in done.stderr and victim.read_text() == "mine"


def test_folders_made_on_the_way_to_the_socket_are_private(short_path):
    process = DaemonProcess(short_path)
    process.address = f"unix:{short_path}/a/b/d.sock"
    process.argv[process.argv.index("--listen") + 1] = process.address
    before = os.umask(0)
    try:
        process.start()
        assert [oct((short_path / name).stat().st_mode & 0o777) for name in ("a", "a/b")] == ["0o700"] * 2
    finally:
        os.umask(before)
        process.end()


STRANGER = """
import os, socket, sys
os.setgid(65534); os.setuid(65534)
with socket.socket(socket.AF_UNIX) as found:
    found.connect(sys.argv[1])
    found.settimeout(30)
    found.sendall(b"PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    try:
        while found.recv(4096):
            pass
    except ConnectionError:
        pass
    print("cut off")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_somebody_else_is_cut_off_even_where_the_folder_is_open(daemon, short_path):
    short_path.chmod(0o755)
    daemon.socket.parent.chmod(0o755)
    daemon.socket.chmod(0o666)
    stranger = subprocess.Popen([sys.executable, "-c", STRANGER, str(daemon.socket)], stdout=subprocess.PIPE, text=True)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            stranger.wait(2)  # it is connected
        assert record(daemon.address, [hello(engine_id())])[1] == grpc.StatusCode.OK
        assert stranger.communicate(timeout=30)[0] == "cut off\n"
    finally:
        stranger.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_recorder_gives_its_rows_to_no_stranger(short_path, capfd):
    with socket.socket(socket.AF_UNIX) as fake:
        fake.bind(str(short_path / "d.sock"))
        os.chown(short_path / "d.sock", 65534, 65534)
        stream = Stream(f"unix:{short_path}/d.sock", engine_id())
        stream.put(TOKENS)
        assert stream.close(CLOSE_SECS).lost == {"tokens": 10}
    assert "the socket belongs to somebody else" in capfd.readouterr().err
