"""Every way a recorded job may end: what it recorded is sealed and told, nothing is left behind, the status is its own.

The jobs speak the wire as a recorder does; `tests/engine/test_record_crash.py` does the same with a real engine.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.engine import wait_for
from helpers.wire import DaemonProcess
from tracekit.errors import EXIT_DATA_LOST, EXIT_FAILED, EXIT_OK
from tracekit.trace.reader import open_trace

# records 10 tokens, says so once they are on the disk, and ends as told
JOB = """
import os, resource, signal, sys, time
from pathlib import Path
from helpers.wire import engine_row, numbered_tokens
from tracekit.recorder.stream import Stream
from tracekit.rpc.client import ControlClient

how, ready, job = sys.argv[1], Path(sys.argv[2]), os.getpid()
if how == "orphan" and os.fork():  # the job ends before its engine
    while not ready.exists():
        time.sleep(0.02)
    os._exit(0)
stream = Stream(os.environ["TRACEKIT_DAEMON"], os.urandom(16).hex())
stream.put(engine_row() | numbered_tokens(0, 10))
with ControlClient(os.environ["TRACEKIT_DAEMON"]) as daemon:
    while not any(engine.durable_seq for engine in daemon.list_engines()):
        time.sleep(0.02)
ready.write_text(str(job))
try:
    if how in ("wait", "orphan"):
        time.sleep(60)
    if how == "linger":  # asked to end, it still has something to do
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.pause()
        stream.put(numbered_tokens(10, 10))
    if how == "raise":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if how == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (1 << 32, 1 << 32))
        bytearray(1 << 33)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "killed-inside":  # a process that the job started
        os.execlp("sh", "sh", "-c", "kill -9 $$ & wait")
    if how == "status-3":
        raise SystemExit(3)
finally:
    if how == "late":
        stream.lose({}, "nobody knows")
    stream.close(5)
    if how == "late":  # the engine goes on, as under an exit handler that is older than it
        for _ in range(3):
            stream.lose({"tokens": 2}, "it went on")
"""

KILLED = "the job ended with exit status 137 (SIGKILL, as when the machine is out of memory)"


def _hang_up_ends_us() -> None:
    """Tests may run under nohup, which `record` and the job would inherit."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Job:
    """`tracekit record` of a job that ends in one way, in a session of its own."""

    def __init__(self, folder: Path, how: str, temporary: str = "") -> None:
        self.out, self.ready, self.log = folder / "t.arrow", folder / "ready", folder / "log.txt"
        argv = [sys.executable, "-m", "tracekit", "record", "-o", str(self.out)]
        argv += ["--", sys.executable, "-c", JOB, how, str(self.ready)]
        environ = {**os.environ, "TMPDIR": str(folder / temporary), "THIS_RECORDING": str(folder)}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                argv, stderr=log, stdout=log, env=environ, start_new_session=True, preexec_fn=_hang_up_ends_us
            )
        self.folder = folder

    def wait_ready(self) -> int:
        """Return the job's process id."""
        return int(wait_for(lambda: self.ready.exists() and self.ready.read_text(), "the job", 60))

    def end(self) -> tuple[int, list[str]]:
        """Return its exit status and what it said, once nothing of it runs any more."""
        code = self.process.wait(60)
        wait_for(lambda: not self.processes(), f"the end of {self.processes()}", 30)
        return code, self.said()

    def said(self) -> list[str]:
        return self.log.read_text().splitlines()

    def processes(self) -> list[int]:
        """Every process that inherited this recording's environment."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"THIS_RECORDING={self.folder}\0".encode() in path.read_bytes():
                    found.append(int(path.parent.name))
            except OSError:
                pass
        return found

    def daemon(self) -> int:
        """The process id of its tracekitd."""
        return next(pid for pid in self.processes() if b"tracekitd" in Path(f"/proc/{pid}/cmdline").read_bytes())


@pytest.fixture
def record(short_path: Path) -> Iterator[Job]:
    started: list[Job] = []

    def start(*how: str) -> Job:
        started.append(Job(short_path, *how))
        return started[-1]

    yield start
    for recording in started:
        for pid in recording.processes():
            os.kill(pid, signal.SIGKILL)


def check_sealed(recording: Job, num_tokens: int = 10) -> None:
    assert open_trace(recording.out).table("tokens").column("token_id").to_pylist() == list(range(num_tokens))
    assert any(f"{recording.out}: {num_tokens} tokens, 0 requests, 1 engine" in line for line in recording.said())
    left = {path.name for path in recording.folder.iterdir()} - {"t.arrow", "ready", "log.txt"}
    assert left == set()


@pytest.mark.parametrize(
    ("how", "code", "sentence", "lost"),
    [
        ("well", EXIT_OK, "", False),
        ("raise", 1, "the job ended with exit status 1", False),
        ("memory", 1, "the job ended with exit status 1", False),
        ("status-3", 3, "the job ended with exit status 3", False),
        ("killed", 137, KILLED, True),
        (
            "killed-inside",
            137,
            KILLED,
            True,
        ),
    ],
)
def test_what_was_recorded_is_told_whatever_the_jobs_status(record, how: str, code: int, sentence: str, lost: bool):
    recording = record(how)
    ended, said = recording.end()
    assert ended == code
    check_sealed(recording)
    assert any("lost: engine 0" in line and "rows unknown (open end" in line for line in said) == lost
    assert said[-1] == f"tracekit: {sentence}" if sentence else "ended" not in said[-1]


def test_what_comes_after_the_goodbye_is_a_loss(record):
    recording = record("late")
    ended, said = recording.end()
    assert ended == EXIT_DATA_LOST
    check_sealed(recording)
    losses = open_trace(recording.out).all_losses()
    assert [(loss.rows, loss.reason) for loss in losses] == [({}, "nobody knows"), ({"tokens": 6}, "it went on")]
    assert any("tokens 6 (it went on)" in line for line in said)


def test_ctrl_c_ends_the_job_and_its_recording_is_sealed(record):
    recording = record("wait")
    recording.wait_ready()
    os.killpg(recording.process.pid, signal.SIGINT)  # what a terminal does
    code, said = recording.end()
    assert code == 130 and said[-1] == "tracekit: the job ended with exit status 130 (SIGINT)"
    check_sealed(recording)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_us_is_handed_to_the_job(record, number: signal.Signals):
    recording = record("wait")
    recording.wait_ready()
    recording.process.send_signal(number)
    code, said = recording.end()
    assert code == 128 + number and said[-1].endswith(f"exit status {128 + number} ({number.name})")
    check_sealed(recording)


def test_a_supervisor_that_signals_everybody_does_not_end_the_daemon_before_the_job(record):
    recording = record("linger")
    recording.wait_ready()
    for pid in recording.processes():
        os.kill(pid, signal.SIGTERM)
    code, said = recording.end()
    assert code == EXIT_OK and not any("started anew" in line for line in said)
    check_sealed(recording, 20)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, EXIT_FAILED)])
def test_ended_before_the_job_began_nothing_is_left(record, number: signal.Signals, code: int):
    recording = record("wait")
    wait_for(lambda: len(recording.processes()) > 1, "tracekitd", 60)
    recording.process.send_signal(number)
    assert recording.end()[0] == code
    assert [path.name for path in recording.folder.iterdir()] == ["log.txt"]
    assert not any("Traceback" in line for line in recording.said())


def test_impatience_after_the_job_is_answered_first_and_obeyed_then(record):
    recording = record("orphan")  # its engine is still connected: the daemon gives it some seconds
    job = recording.wait_ready()
    wait_for(lambda: job not in recording.processes(), "the job's end", 60)
    time.sleep(0.5)
    recording.process.send_signal(signal.SIGINT)
    wait_for(lambda: "sealing the trace" in recording.said()[-1], "an answer", 30)
    recording.process.send_signal(signal.SIGINT)
    assert recording.process.wait(30) == EXIT_FAILED
    assert recording.said()[-1].endswith(f"what was recorded is kept in {recording.out}.spool")
    assert open_trace(f"{recording.out}.spool").table("tokens").num_rows == 10


def test_an_engine_that_outlives_the_job_is_named(record):
    recording = record("orphan")
    recording.wait_ready()
    assert recording.process.wait(60) == EXIT_DATA_LOST
    (engine,) = recording.processes()
    assert recording.said()[-1].startswith(f"tracekit: the job's engine process {engine} still runs")
    os.kill(engine, signal.SIGKILL)
    recording.end()
    check_sealed(recording)


def test_when_we_are_killed_the_job_goes_on_and_its_recording_is_sealed(record):
    recording = record("linger")
    job = recording.wait_ready()
    recording.process.kill()
    recording.process.wait()
    time.sleep(1)
    assert recording.daemon()
    os.kill(job, signal.SIGTERM)
    recording.end()
    assert open_trace(recording.out).table("tokens").num_rows == 20


def test_what_an_earlier_recording_left_is_not_mixed_into_the_next(record):
    recording = record("wait")
    job, daemon = recording.wait_ready(), recording.daemon()
    for pid in (recording.process.pid, daemon, job):
        os.kill(pid, signal.SIGKILL)
    recording.process.wait()
    again = record("well")
    code, said = again.end()
    assert code == EXIT_FAILED and "a recording was cut off" in said[-1]
    assert open_trace(recording.out.with_name("t.arrow.spool")).table("tokens").num_rows == 10


def test_a_failing_job_of_somebody_elses_daemon_keeps_its_status_and_its_losses_are_told(short_path: Path):
    with_note = "import sys; open(sys.argv[1], 'w').write(sys.argv[2]); sys.exit(int(sys.argv[3]))"
    process = DaemonProcess(short_path).start()
    note = short_path / "run" / f"d.sock.undelivered-{'a' * 32}.json"
    facts = (
        '{"engine_id": "'
        + "a" * 32
        + '", "from_seq": 1, "to_seq": 2, "rows": {"tokens": 5}, "produced": {}, "reason": "today"}'
    )
    try:
        argv = [sys.executable, "-m", "tracekit", "record", "--daemon", process.address, "--", sys.executable, "-c"]
        for status, code in (("7", 7), ("0", EXIT_DATA_LOST)):
            done = subprocess.run([*argv, with_note, note, facts, status], capture_output=True, text=True)
            assert done.returncode == code and "5 tokens (today)" in done.stderr
            note.unlink()
    finally:
        process.end()


@pytest.mark.parametrize("temporary", ["a b", "a%20b", "a#b?c", "a,b", "x" * 90])
def test_the_folder_for_temporary_files_may_have_any_name(record, short_path: Path, temporary: str):
    (short_path / temporary).mkdir()
    recording = record("well", temporary)
    assert recording.end()[0] == EXIT_OK
    assert list((short_path / temporary).iterdir()) == []
    (short_path / temporary).rmdir()
    check_sealed(recording)
