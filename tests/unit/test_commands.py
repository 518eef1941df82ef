"""Commands on their way to an engine and back, with a daemon that has no manners: once each, behind their rows."""

import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from helpers.wire import LabelledEngine, numbered_tokens, unpack
from tracekit.recorder import session as session_module
from tracekit.recorder.stream import Stream
from tracekit.recorder.window import Window
from tracekit.rpc import messages
from tracekit.rpc.frames import unframe
from tracekit.rpc.methods import RECORDER

ENGINE = "cd" * 16
WAIT_SECS = 60


class FakeDaemon:
    """Sends the acks it is told to, on one connection after the other, and keeps every batch it gets."""

    def __init__(self, folder):
        self.address = f"unix:{folder}/d.sock"
        self.acks: queue.Queue = queue.Queue()
        self.batches: queue.Queue = queue.Queue()
        handler = grpc.stream_stream_rpc_method_handler(self.record, unframe, messages.Ack.SerializeToString)
        self.server = grpc.server(ThreadPoolExecutor(4))
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(RECORDER, {"Record": handler})])
        self.server.add_insecure_port(self.address)
        self.server.start()

    def record(self, requests, context):
        threading.Thread(target=self.read, args=(requests,), daemon=True).start()
        yield messages.Ack()
        while (ack := self.acks.get()) is not None:
            yield ack

    def read(self, requests):
        try:
            for batch in requests:
                self.batches.put(batch)
        except grpc.RpcError:
            pass

    def command(self, **fields):
        self.acks.put(messages.Ack(commands=[messages.Command(**fields)]))

    def next_result(self):
        """The next batch with results; the rows of `weights` that came before or with it."""
        labels = []
        while True:
            batch, payload, _ = self.batches.get(timeout=WAIT_SECS)
            labels += unpack(payload).get("weights", {}).get("label", []) if payload else []
            if batch.results:
                (result,) = batch.results
                return result, labels


@pytest.fixture
def fake(short_path):
    daemon = FakeDaemon(short_path)
    yield daemon
    daemon.acks.put(None)
    daemon.server.stop(None)


@pytest.fixture
def engine(fake):
    """A recorder's end, connected."""
    made = LabelledEngine(fake.address, ENGINE)
    yield made
    made.session.close(0.1)


def mark(name, checkpoint=""):
    return messages.MarkWeights(label=name, checkpoint=checkpoint)


def test_a_label_is_answered_behind_its_row_and_once(fake, engine):
    for _ in range(3):
        fake.command(id="a", mark_weights=mark("step-1", "/ckpt"))
    fake.command(id="b", mark_weights=mark("step-2"))
    result, rows = fake.next_result()
    assert (result.id, result.error, result.weight_version, result.engine_step) == ("a", "", 3, 7)
    assert rows == ["step-1"]
    result, rows = fake.next_result()
    assert (result.id, result.error) == ("b", "") and rows == ["step-2"]
    assert engine.labels == [("step-1", "/ckpt"), ("step-2", None)]


def test_an_answer_that_was_not_confirmed_is_sent_again_and_the_command_is_not_done_again(fake, engine):
    fake.command(id="a", mark_weights=mark("step-1"))
    first, _ = fake.next_result()
    fake.acks.put(None)  # the connection ends, nothing was confirmed
    again, rows = fake.next_result()
    assert again == first and rows == ["step-1"]
    fake.command(id="a", mark_weights=mark("step-1"))
    fake.command(id="b", mark_weights=mark("step-2"))
    assert fake.next_result()[0].id == "b"
    assert engine.labels == [("step-1", None), ("step-2", None)]


def test_what_cannot_be_done_is_answered_with_an_error(fake, engine):
    fake.command(id="a", mark_weights=mark("bad"))
    assert fake.next_result()[0].error == "no such thing"
    fake.command(id="b")  # of a later protocol, say
    assert fake.next_result()[0].error == "this recorder does not know the command"
    assert engine.labels == []


def test_a_label_that_is_lost_on_the_way_is_an_error(fake, engine, monkeypatch):
    monkeypatch.setattr(
        engine.stream, "put", lambda tables, *_: engine.stream.lose({"weights": 1}, "the recorder's window is full")
    )
    fake.command(id="a", mark_weights=mark("step-1"))
    assert fake.next_result()[0].error == "its row was lost" and engine.labels
    monkeypatch.setattr(session_module, "MAX_EVENTS", 0)
    fake.command(id="b", mark_weights=mark("step-2"))
    assert "queue is full" in fake.next_result()[0].error


def test_a_recorder_without_commands_says_so(fake):
    stream = Stream(fake.address, ENGINE)
    stream.put(numbered_tokens(0, 1))
    fake.command(id="a", mark_weights=mark("step-1"))
    assert fake.next_result()[0].error == "this recorder takes no commands"
    stream.close(0.1)


def test_an_answer_behind_a_refused_batch_is_an_error():
    window = Window(ENGINE, 1 << 20)
    window.add(b"x", {"weights": 1})
    window.answer(messages.CommandResult(id="a"))
    assert window.reject_first("refused by the daemon: no")
    window.next_unsent()
    (result,) = unframe(window.next_unsent()).batch.results
    assert result.error == "its rows may be lost, a batch before it was refused by the daemon: no"
