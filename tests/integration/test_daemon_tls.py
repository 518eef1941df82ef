"""The daemon over TCP: with TLS and somebody it knows, or not at all; certificates and tokens change while it runs."""

import datetime
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import pytest
import trustme

from helpers.tls import TOKEN, Files, TcpDaemon
from helpers.wire import Sent, batch, engine_id, hello, numbered_tokens, record, rows_of_trace
from tracekit.errors import UsageError
from tracekit.recorder.stream import Stream
from tracekit.rpc import messages
from tracekit.rpc.client import ControlClient
from tracekit.rpc.credentials import MAX_FILE_BYTES, Access, read_file, read_tokens
from tracekit.rpc.methods import RECORDER, SERVICES
from tracekit.trace.reader import open_trace
from tracekitd.calls import MAX_CALLS
from tracekitd.service import MAX_GREETING, MAX_STREAMS
from tracekitd.tls import Certificates
from tracekitd.tokens import Tokens, digest_of

CLOSE_SECS = 60.0
TOKENS = numbered_tokens(0, 10)


@pytest.fixture
def files(short_path):
    (short_path / "pki").mkdir()
    return Files(short_path / "pki")


@pytest.fixture
def start(short_path, files):
    made = []

    def start(*more: str) -> TcpDaemon:
        made.append(TcpDaemon(short_path, files, *more))
        return made[-1].start()

    yield start
    for process in made:
        process.end()


def test_rows_come_over_tls_with_a_token_and_from_nobody_else(start, files, capfd):
    daemon = start()
    honest = Stream(daemon.tcp, engine_id(), access=daemon.access())
    honest.put(TOKENS)
    assert not honest.close(CLOSE_SECS).undelivered
    files.secret("wrong", b"a-wrong-token-of-length")
    trustme.CA().cert_pem.write_to_path(files / "other.pem")
    for access in (
        daemon.access(token_file=files / "wrong"),
        daemon.access(token_file=None),
        daemon.access(ca_file=files / "other.pem"),
    ):
        stream = Stream(daemon.tcp, engine_id(), access=access)
        stream.put(TOKENS)
        assert stream.close(5).undelivered == {"tokens": 10}
    err = capfd.readouterr().err
    for words in ("it has no token that this daemon knows", "CERTIFICATE_VERIFY_FAILED"):
        assert err.count(f"not there yet, or not for us ({words}") <= 1 and words in err
    assert "does not know our token" in daemon.ask(token_file=files / "wrong")
    assert "CERTIFICATE_VERIFY_FAILED" in daemon.ask(ca_file=files / "other.pem")  # who asks is told why
    with grpc.insecure_channel(daemon.tcp.removeprefix("grpcs://")) as channel:  # without TLS at all
        call = SERVICES[RECORDER]["Record"].on(channel)(iter([hello(engine_id()).to_bytes()]), timeout=30)
        assert call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert daemon.stop() == 0
    assert len(rows_of_trace(daemon.out, "tokens")) == 10 and open_trace(daemon.out).complete


def test_reflection_wants_a_token_and_health_does_not(start, files):
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    daemon = start()
    secrets = grpc.ssl_channel_credentials((files.folder / "ca.pem").read_bytes())
    with grpc.secure_channel(daemon.tcp.removeprefix("grpcs://"), secrets) as channel:
        reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        ask = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo
        with pytest.raises(grpc.RpcError, match="no token"):
            next(ask(iter([reflection_pb2.ServerReflectionRequest(list_services="")])))


def test_one_token_keeps_no_other_out(start, files, tmp_path):
    files.secret("token", f"{TOKEN}\n{'b' * 32}".encode())
    (files.folder / "other").touch(0o600)
    (files.folder / "other").write_text("b" * 32)
    daemon = start()
    over = threading.Event()
    channel = grpc.secure_channel(
        daemon.tcp.removeprefix("grpcs://"), grpc.ssl_channel_credentials((files.folder / "ca.pem").read_bytes())
    )
    beside = grpc.insecure_channel(daemon.address)
    metadata = [(("authorization", f"{form}{TOKEN}"),) for form in ("Bearer ", "")]  # both are the same token

    def flood(name, num, first=True):
        def silent():
            if first:
                yield hello(engine_id()).to_bytes()
            over.wait()

        return [channel.stream_stream(name)(silent(), metadata=metadata[i % 2]) for i in range(num)]

    try:
        held = flood("/tracekit.v1.Recorder/Record", MAX_STREAMS)
        for call in held:
            next(call)
        flooded, slow = threading.Event(), engine_id()

        def late():
            flooded.wait()
            yield hello(slow).to_bytes()
            over.wait()

        greeting = beside.stream_stream("/tracekit.v1.Recorder/Record")(late())
        time.sleep(0.5)
        silent = flood("/tracekit.v1.Recorder/Record", 2 * MAX_GREETING, first=False)
        while sum(call.is_active() for call in silent) > MAX_GREETING:
            time.sleep(0.05)
        flooded.set()
        next(greeting)
        calls = flood("/tracekit.v1.Control/Flush", MAX_CALLS + 1, first=False)
        while all(call.is_active() for call in calls):
            time.sleep(0.05)
        others = [Stream(daemon.tcp, engine_id(), access=daemon.access(token_file=files / "other")) for _ in range(3)]
        others.append(Stream(daemon.address, engine_id()))
        for stream in others:
            stream.put(TOKENS)
        with ControlClient(daemon.tcp, 30, daemon.access(token_file=files / "other")) as client:
            while sum(engine.durable_seq for engine in client.list_engines()) < len(others):
                client.flush()
            assert sum(engine.open for engine in client.list_engines()) == MAX_STREAMS
        ousted = [call for call in held if not call.is_active()]
        assert [call.code() for call in ousted] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * len([greeting, *others])
        for stream in others:
            assert not stream.close(CLOSE_SECS).undelivered
    finally:
        over.set()
        channel.close()
        beside.close()


def test_who_sends_half_of_a_long_row_holds_up_no_other(start, files):
    daemon, over, slow, honest = start(), threading.Event(), engine_id(), engine_id()
    secrets = grpc.ssl_channel_credentials((files.folder / "ca.pem").read_bytes())
    whole = batch(honest, 1, TOKENS)
    parts = [Sent(messages.Batch.FromString(whole.batch.SerializeToString())) for _ in range(2)]
    for number, part in enumerate(parts):
        part.batch.piece, part.batch.pieces = number, 2
        part.payload = whole.payload[number * 100 :] if number else whole.payload[:100]

    def half():
        yield hello(slow).to_bytes()
        made = batch(slow, 1, TOKENS)
        made.batch.piece, made.batch.pieces = 0, 2
        yield made.to_bytes()
        over.wait()

    with grpc.secure_channel(daemon.tcp.removeprefix("grpcs://"), secrets) as channel:
        call = channel.stream_stream("/tracekit.v1.Recorder/Record")(
            half(), metadata=(("authorization", f"Bearer {TOKEN}"),)
        )
        next(call)
        time.sleep(0.5)
        acks, status, _ = record(daemon.address, [hello(honest), *parts])
        assert (acks[-1], status, call.is_active()) == (1, grpc.StatusCode.OK, True)
        over.set()


def test_health_says_so_where_the_socket_is_gone_for_good(start, files):
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    daemon = start()
    secrets = grpc.ssl_channel_credentials((files.folder / "ca.pem").read_bytes())
    with grpc.secure_channel(daemon.tcp.removeprefix("grpcs://"), secrets) as channel:

        def wait_for(status):
            check = health_pb2_grpc.HealthStub(channel).Check
            while check(health_pb2.HealthCheckRequest()).status != status:
                time.sleep(0.05)

        wait_for(health_pb2.HealthCheckResponse.SERVING)
        shutil.rmtree(daemon.socket.parent)
        daemon.socket.parent.touch()  # nothing can be made there
        wait_for(health_pb2.HealthCheckResponse.NOT_SERVING)
        time.sleep(1.5)
        assert daemon.stderr().count("no engine can connect") == 1
        daemon.socket.parent.unlink()
        wait_for(health_pb2.HealthCheckResponse.SERVING)
    with ControlClient(daemon.address) as client:
        assert client.describe().version


def test_a_stranger_who_sends_half_of_what_he_announces_costs_nothing(start, short_path, files):
    """Two connections without a token had the daemon keep 2 GB; one that read nothing kept it from ending."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    daemon = TcpDaemon(short_path, files)
    limits = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (160, 160))"
    daemon.argv[1:3] = [
        "-c",
        f"{limits}; from tracekitd import calls, __main__; calls.REQUEST_SECS = 3; __main__.main()",
    ]
    over, secrets = threading.Event(), grpc.ssl_channel_credentials((files.folder / "ca.pem").read_bytes())
    token = (("authorization", f"Bearer {TOKEN}"),)

    def silent():
        over.wait()
        yield b""

    try:
        daemon.start()
        place = daemon.tcp.removeprefix("grpcs://")
        sockets = [socket.create_connection(("127.0.0.1", int(place.rpartition(":")[2]))) for _ in range(60)]
        time.sleep(0.5)
        assert len(os.listdir(f"/proc/{daemon.process.pid}/fd")) < 60  # the spool and the unix socket keep theirs
        with ControlClient(daemon.address) as client:
            client.flush()
        for found in sockets:
            found.close()
        with grpc.secure_channel(place, secrets) as channel:
            check = channel.stream_unary("/grpc.health.v1.Health/Check")
            # the daemon may not have seen yet that the others have gone
            answers = [check(silent(), timeout=30, wait_for_ready=True) for _ in range(3)]
            assert answers == [health_pb2.HealthCheckResponse(status="SERVING").SerializeToString()] * 3
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert watch.code() == grpc.StatusCode.UNAUTHENTICATED
            flush = channel.stream_unary("/tracekit.v1.Control/Flush")
            calls = [flush.future(silent(), metadata=token) for _ in range(MAX_CALLS)]
            while (late := flush.future(silent(), metadata=token)).code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                assert late.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            assert {call.code() for call in calls} == {grpc.StatusCode.DEADLINE_EXCEEDED}
            with pytest.raises(grpc.RpcError, match="not the request of that call"):
                channel.unary_unary("/tracekit.v1.Control/ListEngines")(b"\xff", metadata=token)
            over.set()
        assert daemon.ask() and daemon.stop() == 0 and "Traceback" not in daemon.stderr()
    finally:
        over.set()
        daemon.end()


def test_what_gRPC_would_take_and_then_refuse_everybody_with(files):
    (files.folder / "bad").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for cert, key, authority, words in (
        ("client.pem", "server.key", None, "go together"),
        ("bad", "server.key", None, "go together"),
        ("server.pem", "server.key", "bad", "not certificates"),
        ("server.pem", "server.key", "token", "not certificates"),
    ):
        with pytest.raises(UsageError, match=words):
            Certificates(files.folder / cert, files.folder / key, authority and files.folder / authority)
        access = Access(None, authority and files / authority, files / cert, files / key)
        with pytest.raises(UsageError, match=words):
            ControlClient("grpcs://localhost:1", access=access)


def test_a_file_that_is_mended_by_its_mode_alone_is_taken(files, capfd):
    tokens, good = Tokens(files.folder / "token"), digest_of([("authorization", f"Bearer {TOKEN}")])
    (files.folder / "token").chmod(0o644)
    assert not tokens._knows(good) and "others can read" in capfd.readouterr().err
    (files.folder / "token").chmod(0o600)
    assert tokens._knows(good)
    for odd in (
        "",
        "Bearer ",
        f"Bearer  {TOKEN}",
        f"bearer {TOKEN}",
        f"Bearer {TOKEN}\n",
        "Bearer \udcff",
        f"{TOKEN},{TOKEN}",
    ):
        assert not tokens._knows(digest_of([("authorization", odd)]))


def test_files_are_read_whole_or_not_at_all(files):
    """64 KiB of a system's authorities were read, and the rest was not trusted, without a word."""
    (files.folder / "many.pem").write_bytes((files.folder / "ca.pem").read_bytes() * 200)
    assert len(read_file(files / "many.pem")) == 200 * len(read_file(files / "ca.pem")) > 100_000
    (files.folder / "huge").write_bytes(bytes(MAX_FILE_BYTES + 1))
    os.mkfifo(files / "pipe")
    for name in ("huge", "pipe", "."):
        with pytest.raises(UsageError, match=r"not a file of at most 1 MiB|Is a directory"):
            read_file(files / name)


def test_mutual_tls_knows_clients_by_their_certificate(start, files):
    daemon = start("--client-ca", files / "ca.pem")
    ours = {"cert_file": files / "client.pem", "key_file": files / "client.key", "token_file": None}
    stream = Stream(daemon.tcp, engine_id(), access=daemon.access(**ours))
    stream.put(TOKENS)
    assert not stream.close(CLOSE_SECS).undelivered
    assert "does not answer" in daemon.ask(token_file=None)
    other = trustme.CA().issue_cert("client.example")
    files.secret("client.key", other.private_key_pem.bytes())
    other.cert_chain_pems[0].write_to_path(files / "client.pem")
    assert "does not answer" in daemon.ask(**ours)


def test_certificates_and_tokens_change_without_a_restart(start, files):
    daemon = start()
    stream = Stream(daemon.tcp, engine_id(), access=daemon.access())
    stream.put(TOKENS)
    while not stream._window.acked_seq:
        time.sleep(0.05)
    version = daemon.ask()
    authority = trustme.CA()
    files.issue(authority)
    assert "does not answer" in daemon.ask()
    authority.cert_pem.write_to_path(files / "ca.pem")
    assert daemon.ask() == version
    (files.folder / "server.pem").write_bytes(b"half a certi")
    assert daemon.ask() == version and "the last certificate stays in use" in daemon.stderr()
    files.secret("token", b"another-token-of-length\n" + TOKEN.encode())
    assert daemon.ask() == version
    files.secret("old", TOKEN.encode())
    assert daemon.ask(token_file=files / "old") == version
    files.secret("token", b"another-token-of-length")
    assert "does not know our token" in daemon.ask(token_file=files / "old") and daemon.ask() == version
    (files.folder / "token").unlink()
    files.secret("mine", b"another-token-of-length")
    assert "does not know our token" in daemon.ask(token_file=files / "mine")
    stream.put(numbered_tokens(10, 10))  # it is connected all the while
    assert not stream.close(CLOSE_SECS).undelivered


def test_an_expired_certificate_is_refused_by_the_client(start, files):
    daemon = start()
    files.issue(files.ca, not_after=datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(hours=1))
    assert "does not answer" in daemon.ask()


@pytest.mark.parametrize(
    ("listen", "more", "words"),
    [
        ("grpcs://0.0.0.0:0", ["--cert", "C", "--key", "K"], "anybody could call"),
        ("grpcs://127.0.0.1:0", ["--cert", "C", "--key", "K"], "anybody could call"),
        ("grpcs://0.0.0.0:0", ["--token-file", "T"], "needs --cert and --key"),
        ("grpc://0.0.0.0:0", ["--token-file", "T"], "with TLS, on grpcs://"),
        ("0.0.0.0:0", ["--token-file", "T", "--cert", "C", "--key", "K"], "with TLS, on grpcs://"),
        ("grpcs://0.0.0.0:65536", ["--token-file", "T", "--cert", "C", "--key", "K"], "with TLS, on grpcs://"),
        ("grpcs://0.0.0.0:0", ["--token-file", "OPEN", "--cert", "C", "--key", "K"], "others can read this secret"),
        ("grpcs://0.0.0.0:0", ["--token-file", "T", "--cert", "C", "--key", "C"], "others can read this secret"),
        ("grpcs://0.0.0.0:0", ["--token-file", "SHORT", "--cert", "C", "--key", "K"], "at least 16 characters"),
        ("grpcs://0.0.0.0:0", ["--token-file", "T", "--cert", "K", "--key", "K"], "not a key and a certificate"),
    ],
)
def test_an_address_that_anybody_could_use_is_refused(files, listen, more, words):
    files.secret("short", b"short")
    (files.folder / "open").write_bytes(TOKEN.encode())
    (files.folder / "open").chmod(0o644)
    names = {"C": "server.pem", "K": "server.key", "T": "token", "OPEN": "open", "SHORT": "short"}
    given = [files / names[word] if word in names else word for word in more]
    for checked in ([], ["--check-config"]):
        argv = [sys.executable, "-m", "tracekitd", "--listen", listen, "--spool", files / "spool", *given, *checked]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not Path(files / "spool").exists()


def test_an_address_that_is_taken_is_said_with_the_reason(files):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        argv = [sys.executable, "-m", "tracekitd", "--listen", f"grpcs://127.0.0.1:{taken.getsockname()[1]}"]
        argv += ["--spool", files / "spool", "--token-file", files / "token"]
        argv += ["--cert", files / "server.pem", "--key", files / "server.key"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.endswith(": Address already in use\n") and done.stderr.count("\n") == 1


def test_a_client_gives_its_token_to_no_plain_address(files):
    for address in ("grpc://localhost:1", "localhost:1", "grpcs://localhost", "grpcs://a:1,b:2"):
        with pytest.raises(UsageError, match="only unix: and grpcs:// addresses"):
            ControlClient(address, access=Access(token_file=files / "token"))
    assert read_tokens(files / "token") == [TOKEN]


def test_a_batch_is_bounded_over_tcp_as_well(start):
    daemon = start()
    stream = Stream(daemon.tcp, identity := engine_id(), access=daemon.access())
    stream.put({"tokens": {name: values.repeat(30_000) for name, values in TOKENS["tokens"].items()}})
    assert not stream.close(CLOSE_SECS).undelivered
    assert batch(identity, 1, TOKENS)
    assert daemon.stop() == 0
    assert open_trace(daemon.out).table("tokens").num_rows == 300_000
