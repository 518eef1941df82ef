"""A real tracekitd and what no recorder should send: one sentence, and what came before is kept."""

import threading

import grpc
import pytest

from helpers.wire import DaemonProcess, all_tables, batch, engine_id, hello, numbered_tokens, record
from tracekit.rpc import messages
from tracekit.rpc.client import wait_ready
from tracekit.rpc.methods import RECORDER, SERVICES
from tracekitd.service import MAX_STREAMS


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One daemon for the tests that send nonsense: it must survive them all."""
    process = DaemonProcess(tmp_path_factory.mktemp("d"), seal=False)
    try:
        yield process.start()
        assert process.process.poll() is None
        assert "Traceback" not in process.stderr(), process.stderr()
    finally:
        process.end()


TOKENS = numbered_tokens(0, 10)


GOOD = "ef" * 16


def damaged(**fields):
    """A good first batch with other fields."""
    made = batch(GOOD, 2, TOKENS, {"tokens": 20})
    for name, value in fields.items():
        setattr(made.batch if hasattr(made.batch, name) else made, name, value)
    return made


def with_row(table, **fields):
    row = all_tables(1)[table] | {name: [text] for name, text in fields.items()}
    return batch(GOOD, 2, {table: row}, {"tokens": 20, table: 1})


def pieces(piece, pieces):
    return damaged(piece=piece, pieces=pieces)


def with_loss(**fields):
    made = batch(GOOD, 2, TOKENS, {"tokens": 20})
    made.batch.losses.add(**fields)
    return made


@pytest.mark.parametrize(
    ("bad", "code", "words"),
    [
        (damaged(crc=1), "DATA_LOSS", "what was sent does not match its checksum"),
        (damaged(payload=b"\xff" * 9), "INVALID_ARGUMENT", "its tables are unknown"),
        (damaged(payload=b"", seq=0), "INVALID_ARGUMENT", "a number from 1"),
        (damaged(seq=2**48), "INVALID_ARGUMENT", "a number from 1"),
        (damaged(seq=2**64 - 1), "INVALID_ARGUMENT", "a number from 1"),
        (batch(GOOD, 2, TOKENS, {"tokens": 2**53}), "INVALID_ARGUMENT", "it counts more than"),
        (batch(GOOD, 2, TOKENS, {"tokens": 9}), "INVALID_ARGUMENT", "its counters go back"),
        (with_row("engines", config="[]"), "INVALID_ARGUMENT", "engines.config is not a JSON object"),
        (with_row("engines", config="{"), "INVALID_ARGUMENT", "engines.config is not JSON"),
        (with_row("requests", labels="[" * 100_000), "INVALID_ARGUMENT", "requests.labels is not JSON"),
        (with_row("requests", sampling_params="9" * 5000), "INVALID_ARGUMENT", "requests.sampling_params is not JSON"),
        (with_row("control", answer="?"), "INVALID_ARGUMENT", "control.answer is not JSON"),
        (with_loss(from_seq=1, to_seq=1, rows={"tokens": 2**64 - 1}), "INVALID_ARGUMENT", "it counts more than"),
        (with_loss(from_seq=1, to_seq=1, reason="x" * 5000), "INVALID_ARGUMENT", "more than 4096 characters"),
        (pieces(1, 3), "INVALID_ARGUMENT", "its pieces are not in order"),
        (pieces(2, 2), "INVALID_ARGUMENT", "its pieces are not in order"),
        (pieces(0, 65), "INVALID_ARGUMENT", "its pieces are not in order"),
        (damaged(engine_id="ab" * 16), "INVALID_ARGUMENT", "its engine's id"),
        (batch(GOOD, 2, TOKENS, {"nonsense": 1}), "INVALID_ARGUMENT", "unknown table: 'nonsense'"),
        (with_loss(from_seq=3, to_seq=2), "INVALID_ARGUMENT", "a loss is not a run"),
        (with_loss(from_seq=1, to_seq=2**63), "INVALID_ARGUMENT", "a loss is not a run"),
        (with_loss(from_seq=1, to_seq=1, rows={"losses": 1}), "INVALID_ARGUMENT", "unknown table"),
        (b"\xff\xff\xff", "INVALID_ARGUMENT", "not a frame of tracekit.v1"),
        (b"\x22\xff\xff\xff\x7f", "INVALID_ARGUMENT", "not a frame of tracekit.v1"),
    ],
)
def test_a_malformed_batch_is_refused_and_the_one_before_is_kept(shared, bad, code, words):
    identity = engine_id()
    if not isinstance(bad, bytes) and bad.batch.engine_id == GOOD:
        bad.batch.engine_id = identity
    acks, status, details = record(shared.address, [hello(identity), batch(identity, 1, TOKENS), bad])
    assert status == grpc.StatusCode[code] and words in details
    assert acks == [0, 1]
    wait_ready(shared.address, 10)


@pytest.mark.parametrize(
    ("first", "code", "words"),
    [
        (hello(GOOD, protocol=1), "FAILED_PRECONDITION", f"it speaks protocol {messages.PROTOCOL}, the recorder 1"),
        (hello(GOOD, schema=99), "FAILED_PRECONDITION", "it writes schema 4, the recorder sends 99"),
        (hello("../../etc/passwd"), "INVALID_ARGUMENT", "32 hex digits"),
        (batch(GOOD, 1, TOKENS), "INVALID_ARGUMENT", "must be a hello"),
        (hello(GOOD), "PERMISSION_DENIED", "that of another recorder"),
    ],
)
def test_a_stream_that_does_not_begin_well_is_refused(shared, first, code, words):
    acks, status, details = record(shared.address, [first])
    assert acks == [] and status == grpc.StatusCode[code] and words in details


def test_a_message_that_is_too_large_is_refused(shared):
    _, status, _ = record(shared.address, [hello(engine_id()), bytes(5 << 20)])
    assert status == grpc.StatusCode.RESOURCE_EXHAUSTED
    wait_ready(shared.address, 10)


def test_the_number_of_streams_is_limited(shared):
    over = threading.Event()

    def engine(identity):
        yield hello(identity).to_bytes()
        over.wait()

    with grpc.insecure_channel(shared.address) as channel:
        stub = SERVICES[RECORDER]["Record"].on(channel)
        calls = [stub(engine(engine_id())) for _ in range(MAX_STREAMS)]
        assert [next(call).durable_seq for call in calls] == [0] * MAX_STREAMS
        _, status, details = record(shared.address, [hello(engine_id())])
        assert status == grpc.StatusCode.RESOURCE_EXHAUSTED and "connected already" in details
        over.set()
        for call in calls:
            assert call.code() == grpc.StatusCode.OK
    assert record(shared.address, [hello(engine_id())])[1] == grpc.StatusCode.OK
