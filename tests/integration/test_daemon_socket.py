"""The unix socket of a daemon whose folder is deleted while it runs, as logind does with a user who has gone."""

import os
import shutil
import signal
import stat

import pytest

from helpers.engine import wait_for
from helpers.wire import DaemonProcess, engine_id, numbered_tokens, rows_of_trace
from tracekit.recorder.stream import Stream
from tracekit.rpc.client import wait_ready

CLOSE_SECS = 60.0


@pytest.mark.parametrize("what", ["folder", "socket", "folder above"])
def test_a_socket_that_was_deleted_is_there_again_and_who_was_connected_stays(short_path, what):
    process = DaemonProcess(short_path)
    process.socket = short_path / "above/run/d.sock"
    process.address = f"unix:{process.socket}"
    process.argv[process.argv.index("--listen") + 1] = process.address
    try:
        process.start()
        early, late = Stream(process.address, engine_id()), Stream(process.address, engine_id())
        early.put(numbered_tokens(0, 10))
        wait_for(lambda: not early.totals().undelivered, "who was connected", 60)
        inode = process.socket.stat().st_ino
        if what == "socket":
            process.socket.unlink()
        else:
            shutil.rmtree(process.socket.parent if what == "folder" else process.socket.parent.parent)
        early.put(numbered_tokens(10, 10))
        late.put(numbered_tokens(0, 10))
        wait_for(lambda: not late.totals().undelivered, "who came later", 60)
        assert process.socket.stat().st_ino != inode
        assert [stat.S_IMODE(os.stat(path).st_mode) for path in (process.socket, process.socket.parent)] == [
            0o600,
            0o700,
        ]
        assert process.stderr().count("was made anew") == 1
        for stream in (early, late):
            assert not stream.close(CLOSE_SECS).undelivered
        assert process.stop() == 0
        assert not process.socket.exists()
        assert [len(rows_of_trace(process.out, "tokens", engine)) for engine in (0, 1)] == [20, 10]
    finally:
        process.end()


def test_a_place_that_another_daemon_took_is_left_to_it(short_path):
    first, second = DaemonProcess(short_path), DaemonProcess(short_path)
    second.spool, second.log = short_path / "spool2", short_path / "stderr2.txt"
    second.argv[second.argv.index("--spool") + 1] = str(second.spool)
    second.argv = second.argv[: second.argv.index("--seal")]
    try:
        first.start()
        first.signal(signal.SIGSTOP)
        shutil.rmtree(short_path / "run")
        second.start()
        first.signal(signal.SIGCONT)
        wait_for(lambda: "no engine can connect" in first.stderr(), "a word", 60)
        assert first.stderr().count("another tracekitd is listening there") == 1
        assert first.stop() == 0
        wait_ready(second.address, 60)  # gRPC removes what lies at its path when it ends, whosever it is
        stream = Stream(second.address, engine_id())
        stream.put(numbered_tokens(0, 10))
        assert not stream.close(CLOSE_SECS).undelivered
        assert second.stop() == 0 and len(rows_of_trace(second.spool, "tokens")) == 10
    finally:
        first.end()
        second.end()
