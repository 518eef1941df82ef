"""A real tracekitd: everything that recorders send comes back out of the trace, bit for bit."""

import os
import resource
import signal
import stat
import subprocess
import sys
from collections import Counter

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from helpers.wire import (
    ENGINE_TABLES,
    DaemonProcess,
    all_tables,
    assert_conserved,
    batch,
    engine_id,
    hello,
    numbered_tokens,
    record,
    rows_of_tables,
    rows_of_trace,
    sort_key,
)
from tracekit.errors import DaemonError
from tracekit.recorder import stream as stream_module
from tracekit.recorder.stream import Stream
from tracekit.rpc import messages
from tracekit.rpc.client import ControlClient, wait_ready
from tracekit.rpc.columns import count_rows
from tracekit.trace.reader import open_trace

CLOSE_SECS = 60.0
TOKENS = numbered_tokens(0, 10)


def run_daemon(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "tracekitd", *arguments], capture_output=True, text=True, timeout=60)


def assert_one_sentence(done: subprocess.CompletedProcess, words: str, code: int) -> None:
    assert done.returncode == code, done.stderr
    assert words in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_every_table_comes_back_bit_for_bit(daemon, monkeypatch):
    monkeypatch.setattr(stream_module, "SPLIT_BYTES", 20_000)  # some batches are cut by rows
    streams = [Stream(daemon.address, engine_id()) for _ in range(2)]
    sent = {number: {name: [] for name in ENGINE_TABLES} for number in range(2)}
    produced = [Counter(), Counter()]
    for number, stream in enumerate(streams):
        for seed in range(5):
            tables = all_tables(1 + seed * 100, seed=seed * 1000 + number, num_requests=50)
            for name, rows in sent[number].items():
                rows += rows_of_tables(tables, name)
            produced[number].update(count_rows(tables))
            stream.put(tables)
        # one after the other, so that the first is engine 0
        totals = stream.close(CLOSE_SECS)
        assert totals.produced == produced[number] and not totals.lost and not totals.undelivered
    assert daemon.stop() == 0
    assert not daemon.spool.exists() and not daemon.socket.exists()
    for number in range(2):
        for name in ENGINE_TABLES:
            stored = rows_of_trace(daemon.out, name, engine=number)
            assert sorted(stored, key=sort_key) == sorted(sent[number][name], key=sort_key), name
    assert open_trace(daemon.out).complete


def test_health_reflection_and_control_answer(daemon):
    stream = Stream(daemon.address, engine_id())
    stream.put(numbered_tokens(0, 10))
    with ControlClient(daemon.address) as client:
        described = client.describe()
        assert described.spool == str(daemon.spool) and described.protocol == messages.PROTOCOL
        while not client.list_engines() or client.list_engines()[0].durable_seq < 1:
            client.flush()
        (engine,) = client.list_engines()
        assert engine.open and not engine.ended and engine.totals.produced["tokens"] == 10
        stream.close(CLOSE_SECS)
        (engine,) = client.list_engines()
        assert engine.ended and engine.durable_seq == 2
    with grpc.insecure_channel(daemon.address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        for service in ("", "tracekit.v1.Recorder", "tracekit.v1.Control"):
            reply = check(health_pb2.HealthCheckRequest(service=service))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        requests = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="tracekit.v1.Recorder"),
        ]
        listed, found = ask(iter(requests))
        names = {service.name for service in listed.list_services_response.service}
        assert {"tracekit.v1.Recorder", "tracekit.v1.Control", "grpc.health.v1.Health"} <= names
        assert b"tracekit/v1/recorder.proto" in found.file_descriptor_response.file_descriptor_proto[0]


def test_the_socket_is_private(daemon):
    assert stat.S_IMODE(daemon.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(daemon.socket.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(daemon.spool.stat().st_mode) == 0o700


def test_a_second_daemon_cannot_take_a_live_socket(daemon, short_path):
    done = run_daemon("--listen", daemon.address, "--spool", str(short_path / "other"))
    assert_one_sentence(done, "another tracekitd is listening there", 1)
    assert not (short_path / "other").exists()
    wait_ready(daemon.address, 5)


def test_a_second_daemon_cannot_take_a_spool_in_use(daemon, short_path):
    done = run_daemon("--listen", f"unix:{short_path}/run/e.sock", "--spool", str(daemon.spool))
    assert_one_sentence(done, "another tracekitd is writing this spool", 1)


def test_what_it_cannot_use_is_refused_with_one_sentence(short_path):
    private, spool = short_path / "private", str(short_path / "spool")
    private.mkdir(mode=0o700)
    for listen, words, code in [
        ("localhost:7000", "on unix:PATH or, with TLS, on grpcs://HOST:PORT", 2),
        ("unix:", "on unix:PATH or, with TLS, on grpcs://HOST:PORT", 2),
        (f"unix:{private}/{'x' * 100}", "longer than 107 bytes", 2),
    ]:
        assert_one_sentence(run_daemon("--listen", listen, "--spool", spool), words, code)
    (short_path / "open").mkdir()
    (short_path / "open").chmod(0o750)
    listen = f"unix:{short_path}/open/d.sock"
    assert_one_sentence(run_daemon("--listen", listen, "--spool", spool), "must be yours alone", 1)
    (private / "d.sock").write_text("mine")
    listen = f"unix:{private}/d.sock"
    assert_one_sentence(run_daemon("--listen", listen, "--spool", spool), "not a socket", 1)
    assert (private / "d.sock").read_text() == "mine"
    (short_path / "out.arrow").write_text("mine")
    listen = f"unix:{private}/e.sock"
    done = run_daemon("--listen", listen, "--spool", spool, "--seal", str(short_path / "out.arrow"))
    assert_one_sentence(done, "exists already", 1)
    assert (short_path / "out.arrow").read_text() == "mine"
    assert not os.path.exists(spool)


def test_a_stale_socket_is_replaced(daemon):
    daemon.kill()
    assert daemon.socket.exists()
    daemon.start()
    assert daemon.stop() == 0


def test_duplicates_are_dropped_and_gaps_are_losses(daemon):
    identity = engine_id()
    first, second = (batch(identity, n, numbered_tokens(10 * n, 10), {"tokens": 10 * n}) for n in (1, 2))
    late = batch(identity, 7, numbered_tokens(70, 10), {"tokens": 77})
    late.batch.losses.add(from_seq=3, to_seq=4, reason="full", rows={"tokens": 30})
    late.batch.totals.lost["tokens"] = 30
    last = batch(identity, 8, {}, {"tokens": 77}, last=True)
    last.batch.totals.lost["tokens"] = 30
    acks, status, _ = record(daemon.address, [hello(identity), first, second, second, first, second, late, late, last])
    assert status == grpc.StatusCode.OK and acks[-1] == 8
    acks, _, _ = record(daemon.address, [hello(identity), first, second, late, last])
    assert acks == [8]
    assert daemon.stop() == 3
    assert [row[2] for row in rows_of_trace(daemon.out, "tokens")] == [*range(10, 30), *range(70, 80)]
    losses = {loss["reason"]: loss for loss in open_trace(daemon.out).losses()}
    assert (losses["full"]["from_seq"], losses["full"]["to_seq"]) == (3, 4)
    (gap,) = [loss for reason, loss in losses.items() if reason.startswith("gap")]
    assert (gap["from_seq"], gap["to_seq"]) == (5, 6)
    assert assert_conserved(daemon.out, {"tokens": 77}) == {"tokens": 47}


def test_engines_keep_their_numbers_over_a_restart(daemon):
    ids = [engine_id() for _ in range(3)]
    for number in (0, 1):
        record(daemon.address, [hello(ids[number]), batch(ids[number], 1, TOKENS)])
    daemon.kill()
    daemon.start()
    for number in (2, 1, 0):
        acks, _, _ = record(daemon.address, [hello(ids[number]), batch(ids[number], 2, TOKENS, {"tokens": 20})])
        assert acks[0] == (0 if number == 2 else 1)
    with ControlClient(daemon.address) as client:
        assert [(engine.engine_id, engine.engine) for engine in client.list_engines()] == [
            (identity, number) for number, identity in enumerate(ids)
        ]


def test_a_recorder_of_another_protocol_says_one_sentence_and_counts(daemon, monkeypatch, capfd):
    spoken = messages.PROTOCOL
    monkeypatch.setattr(stream_module.messages, "PROTOCOL", 7)
    stream = Stream(daemon.address, engine_id())
    stream.put(TOKENS)
    totals = stream.close(CLOSE_SECS)
    assert totals.lost == totals.produced == {"tokens": 10} and not totals.undelivered
    assert capfd.readouterr().err.count(f"it speaks protocol {spoken}, the recorder 7; nothing is recorded") == 1
    assert daemon.stop() == 3  # the note beside the socket counts
    assert assert_conserved(daemon.out, {"tokens": 10}) == {"tokens": 10}


def test_a_batch_that_the_daemon_refuses_is_lost_alone(daemon, monkeypatch):
    honest, count = stream_module.pack, iter(range(100))

    def pack(tables):
        payload = honest(tables)
        return b"\xff" + payload[1:] if next(count) == 2 else payload

    monkeypatch.setattr(stream_module, "pack", pack)
    stream = Stream(daemon.address, engine_id())
    for start in range(0, 50, 10):
        stream.put(numbered_tokens(start, 10))
    totals = stream.close(CLOSE_SECS)
    assert totals.lost == {"tokens": 10} and not totals.undelivered
    assert daemon.stop() == 3
    assert [row[2] for row in rows_of_trace(daemon.out, "tokens")] == [*range(20), *range(30, 50)]
    assert assert_conserved(daemon.out, totals.produced) == {"tokens": 10}


def test_shutdown_waits_for_connected_engines(daemon):
    stream = Stream(daemon.address, engine_id())
    stream.put(numbered_tokens(0, 10))
    with ControlClient(daemon.address) as client:
        while not any(engine.durable_seq for engine in client.list_engines()):
            client.flush()
        daemon.signal(signal.SIGTERM)
        with grpc.insecure_channel(daemon.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            while check(health_pb2.HealthCheckRequest()).status != health_pb2.HealthCheckResponse.NOT_SERVING:
                pass
        acks, status, _ = record(daemon.address, [hello(engine_id())])
        assert (acks, status) == ([], grpc.StatusCode.UNAVAILABLE)  # no new ones
    stream.put(numbered_tokens(10, 10))
    assert not stream.close(CLOSE_SECS).undelivered
    assert daemon.process.wait(60) == 0
    assert [row[2] for row in rows_of_trace(daemon.out, "tokens")] == [*range(20)]


def test_a_second_signal_ends_the_grace(daemon):
    daemon.end()
    daemon.argv[daemon.argv.index("--grace") + 1] = "3600"
    daemon.start()
    stream = Stream(daemon.address, engine_id())
    stream.put(numbered_tokens(0, 10))
    with ControlClient(daemon.address) as client:
        while not any(engine.durable_seq for engine in client.list_engines()):
            client.flush()
    daemon.signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        daemon.process.wait(0.5)
    daemon.signal(signal.SIGINT)
    assert daemon.process.wait(60) == 3  # the engine never said goodbye
    stream.close(0.1)


def test_a_full_disk_holds_acks_back_and_loses_nothing(daemon):
    stream = Stream(daemon.address, engine_id())
    stream.put(numbered_tokens(0, 10))
    with ControlClient(daemon.address) as client:
        while not any(engine.durable_seq for engine in client.list_engines()):
            client.flush()
        # as a full disk would, the limit refuses every further write; Python ignores its signal
        pid, size = daemon.process.pid, sum(path.stat().st_size for path in daemon.spool.glob("hot-*"))
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        for start in range(10, 5010, 50):
            stream.put(numbered_tokens(start, 50))
        while "nothing is confirmed until it works" not in daemon.stderr():
            client.describe()  # it stays up
        durable = client.list_engines()[0].durable_seq
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    totals = stream.close(CLOSE_SECS)
    assert durable == 1 and not totals.undelivered and not totals.lost
    assert daemon.stop() == 0 and "the spool takes data again" in daemon.stderr()
    assert [row[2] for row in rows_of_trace(daemon.out, "tokens")] == [*range(5010)]


def test_the_client_says_what_is_wrong(short_path):
    with pytest.raises(DaemonError, match=r"does not answer .*d\.sock"):
        wait_ready(f"unix:{short_path}/d.sock", 0.2)


def test_tracekit_daemon_is_the_same_daemon(short_path):
    process = DaemonProcess(short_path)
    process.argv[1:3] = ["-c", "from tracekit.cli.main import main; main()", "daemon"]
    try:
        process.start()
        stream = Stream(process.address, engine_id())
        stream.put(numbered_tokens(0, 10))
        assert not stream.close(CLOSE_SECS).undelivered
        assert process.stop() == 0
        assert len(rows_of_trace(process.out, "tokens")) == 10
    finally:
        process.end()
