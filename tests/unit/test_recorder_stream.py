"""The recorder's stream where there is no daemon: it may cost the engine nothing, and it counts."""

import _thread
import json
import os
import socket
import subprocess
import sys

import pytest

from helpers.wire import numbered_tokens
from tracekit.recorder import connection as connection_module
from tracekit.recorder import stream as stream_module
from tracekit.recorder.stream import Stream
from tracekit.rpc.identity import id_of

TOKEN = "cd" * 16
ENGINE = id_of(TOKEN)


def test_it_imports_no_grpc_arrow_or_click_before_the_first_put():
    code = (
        "import sys; from tracekit.recorder.stream import Stream; Stream('unix:/nowhere/d.sock', 'ab' * 16); "
        "print([m for m in ('grpc', 'pyarrow', 'click', 'tracekit.trace') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_without_a_daemon_everything_is_undelivered_and_noted(tmp_path, capfd):
    stream = Stream(f"unix:{tmp_path}/d.sock", TOKEN)
    stream.put(numbered_tokens(0, 10))
    stream.put(numbered_tokens(10, 5))
    totals = stream.close(30)
    assert totals.produced == totals.undelivered == {"tokens": 15} and totals.lost == {}
    note = json.loads((tmp_path / f"d.sock.undelivered-{ENGINE}.json").read_text())
    assert note["engine_id"] == ENGINE and note["rows"] == note["produced"] == {"tokens": 15}
    assert (note["from_seq"], note["to_seq"], note["reason"]) == (1, 3, "no daemon answered")
    assert [path.name for path in tmp_path.iterdir()] == [f"d.sock.undelivered-{ENGINE}.json"]
    assert capfd.readouterr().err.count("could not deliver 15 tokens") == 1


def test_what_is_lost_after_its_end_is_noted(tmp_path, capfd):
    stream = Stream(f"unix:{tmp_path}/d.sock", TOKEN)
    stream.close(30)
    stream.lose({}, "nothing that is known")
    assert list(tmp_path.iterdir()) == []
    for _ in range(3):
        stream.lose({"tokens": 2}, "too late")
    stream.put(numbered_tokens(0, 10))
    note = json.loads((tmp_path / f"d.sock.undelivered-{ENGINE}.json").read_text())
    assert note["rows"] == note["produced"] == {"tokens": 16}
    assert (note["from_seq"], note["to_seq"]) == (1, 5)
    assert not capfd.readouterr().err


def test_without_the_folder_nothing_is_written(tmp_path):
    stream = Stream(f"unix:{tmp_path}/missing/d.sock", TOKEN)
    stream.put(numbered_tokens(0, 10))
    assert stream.close(30).undelivered == {"tokens": 10}
    assert list(tmp_path.iterdir()) == []


def test_a_full_window_drops_the_newest_and_counts_them(tmp_path):
    stream = Stream(f"unix:{tmp_path}/d.sock", TOKEN, max_bytes=1400)
    for start in range(0, 100, 10):
        stream.put(numbered_tokens(start, 10))
    totals = stream.close(30)
    assert totals.produced == {"tokens": 100}
    assert totals.undelivered == {"tokens": 10} and totals.lost == {"tokens": 90}
    note = json.loads((tmp_path / f"d.sock.undelivered-{ENGINE}.json").read_text())
    assert note["rows"] == {"tokens": 100}


def test_what_cannot_be_packed_is_lost_and_said_once(tmp_path, capfd):
    stream = Stream(f"unix:{tmp_path}/d.sock", TOKEN)
    for _ in range(3):
        stream.put({"tokens": {"request": [1, 2]}})
    stream.put("nonsense")
    stream.put({})
    stream.lose({"tokens": 4}, "queue full")
    totals = stream.close(30)
    assert totals.produced == totals.lost == {"tokens": 10}
    assert capfd.readouterr().err.count("a batch is not recorded") == 1


def test_what_cannot_be_packed_for_another_reason_is_lost_too(tmp_path, monkeypatch):
    def out_of_descriptors(_tables):
        raise OSError(24, "Too many open files", "numpy/ma/__init__.py")

    stream = Stream(f"unix:{tmp_path}/d.sock", TOKEN)
    monkeypatch.setattr(stream_module, "pack", out_of_descriptors)
    stream.put(numbered_tokens(0, 7))
    assert stream.close(30).lost == {"tokens": 7}


def test_a_process_with_hardly_a_descriptor_left_is_not_aborted_by_grpc(short_path):
    code = """
import os, resource, socket, sys
import numpy as np, numpy.ma
from tracekit.recorder.stream import Stream
from tracekit.rpc.columns import WIRE_TABLES
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
stream = Stream(f"unix:{sys.argv[1]}", "ab" * 16)
limit = len(os.listdir("/proc/self/fd")) + 1
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
kinds = WIRE_TABLES["tokens"]
stream.put({"tokens": {name: np.zeros(7, kinds[name].rstrip("?")) for name in kinds}})
print(stream.close(5).undelivered)
"""
    done = subprocess.run([sys.executable, "-c", code, str(short_path / "d.sock")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "{'tokens': 7}" and "hardly a file descriptor left" in done.stderr


def test_a_process_with_hardly_a_thread_left_is_not_aborted_by_grpc(short_path, monkeypatch, capfd):
    path = short_path / "d.sock"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    left, start = iter(range(20)), _thread.start_new_thread

    def few(*arguments):
        if next(left, None) is None:
            raise RuntimeError("can't start new thread")
        return start(*arguments)

    monkeypatch.setattr(_thread, "start_new_thread", few)
    monkeypatch.setattr(connection_module, "_open_channel", lambda *_: pytest.fail("grpc is asked"))
    stream = Stream(f"unix:{path}", TOKEN)
    stream.put(numbered_tokens(0, 7))
    assert stream.close(5).undelivered == {"tokens": 7}
    assert "hardly a thread left" in capfd.readouterr().err
    server.close()


@pytest.mark.parametrize("address", ["localhost:1234", "tcp:1.2.3.4:5", ""])
def test_other_addresses_are_refused_with_one_sentence(address, capfd):
    states = []
    stream = Stream(address, TOKEN, on_state=states.append)
    stream.put(numbered_tokens(0, 10))
    assert stream.close(30).lost == {"tokens": 10}
    stream.put(numbered_tokens(10, 5))
    assert stream.close(30).lost == {"tokens": 15}
    assert states == ["refused"]
    assert (
        capfd.readouterr().err.count("only unix: and grpcs:// addresses are supported") == 2
    )  # the sentence, and the loss


def test_nothing_produced_nothing_said(tmp_path, capfd):
    assert Stream(f"unix:{tmp_path}/d.sock", TOKEN).close(30).produced == {}
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr().err == ""


def test_a_forked_child_does_nothing_with_it(tmp_path):
    program = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from helpers.wire import numbered_tokens
from tracekit.recorder.stream import Stream
stream = Stream("unix:{tmp_path}/d.sock", "{TOKEN}")
stream.put(numbered_tokens(0, 10))
with stream._cond:  # a fork may happen while another thread holds the lock
    pid = os.fork()
    if pid == 0:
        stream.put(numbered_tokens(0, 10))
        stream.lose({{"tokens": 1}}, "x")
        os._exit(0 if stream.close(30).produced == {{}} else 1)
assert os.waitpid(pid, 0)[1] == 0
assert stream.close(30).produced == {{"tokens": 10}}
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, env=os.environ)


def test_one_row_that_no_message_holds_is_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_module, "SPLIT_BYTES", 100)
    monkeypatch.setattr(stream_module.messages, "MAX_PAYLOAD_BYTES", 50)
    stream = Stream(f"unix:{tmp_path}/d.sock", TOKEN)
    stream.put(numbered_tokens(0, 3))
    totals = stream.close(30)
    assert totals.lost == {"tokens": 3}


def test_who_asks_is_told_the_last_batch_before_it_can_leave(monkeypatch):
    """Also where the rows become several batches: what a claim rests on must not leave before the claim is made."""
    monkeypatch.setattr(stream_module, "SPLIT_BYTES", 1 << 10)
    stream = Stream("unix:/nowhere/d.sock", "ab" * 16)
    told = []

    def kept(seq):
        told.append((seq, stream._cond._is_owned()))

    stream.put(numbered_tokens(0, 100), kept)
    assert told == [(stream.last_seq(), True)] and stream.last_seq() > 2
    stream.close(0.1)
