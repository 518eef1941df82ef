"""A tracekitd of one recording: started beside the job, stopped after it, its spool sealed into the trace."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tracekit.errors import EXIT_DATA_LOST, EXIT_OK, DaemonError, TracekitError
from tracekit.jobs.run import through_plugins
from tracekit.jobs.signals import answered_by

READY_SECS = 20.0
STOP_SECS = 600.0  # sealing a long trace takes a while
MAX_RESTARTS = 5


def spool_of(output: Path) -> Path:
    """Return where a recording is until it is sealed into `output`."""
    return output.with_name(output.name + ".spool")


def _socket_folder() -> Path:
    """Make a folder that is ours alone: in the user's folder for temporary files, where a socket can be in there."""
    base = tempfile.gettempdir()
    if len(os.fsencode(base)) > 80 or "," in base:  # a socket's path ends at 107 bytes, a gRPC address at a comma
        base = "/tmp"
    return Path(tempfile.mkdtemp(prefix="tracekit-", dir=base))


class Sidecar:
    """Runs tracekitd on a private unix socket while the `with` block lasts.

    Args:
        output: where the sealed trace goes; its spool is `<output>.spool` until then.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.spool = spool_of(output)
        self._folder = _socket_folder()
        self.address = f"unix:{self._folder / 'd.sock'}"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopping = False

    def __enter__(self) -> Sidecar:
        began_before = self.spool.exists()
        asked: list[int] = []
        try:
            with answered_by(asked.append):  # not in the middle of a start: there is something to end then
                self._process = self._start()
            if asked:
                signal.raise_signal(asked[0])
        except BaseException:
            if self._process is not None:
                self._process.kill()
                self._process.wait()
            for folder in [self._folder] if began_before else [self._folder, self.spool]:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        threading.Thread(target=self._watch, name="tracekit-sidecar", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if not self._stopping:
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def environ(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return `base` with what a job needs to be recorded here."""
        return through_plugins({**base, "TRACEKIT_DAEMON": self.address})

    def stop(self) -> int:
        """End the daemon, which seals the trace; where no engine reported there is none.

        Being asked to end meanwhile (Ctrl-C, SIGTERM, SIGHUP) is answered in a line; the second time ends the sealing.

        Returns:
            EXIT_OK, or EXIT_DATA_LOST where rows were lost.

        Raises:
            DaemonError: it could not seal; the spool is kept.
        """
        with self._lock:
            self._stopping = True
            assert self._process is not None
            if self._process.poll() is not None and not self.output.exists():
                self._process = self._start()  # it was killed: a new one seals what the old one wrote
            process, asked = self._process, 0

            def answer(_number: int) -> None:
                nonlocal asked
                asked += 1
                if asked > 1:
                    process.kill()
                    return
                print(f"tracekit: sealing the trace; once more leaves it unsealed in {self.spool}", file=sys.stderr)

            with answered_by(answer):
                _ask_to_seal(process)
                try:
                    code = process.wait(STOP_SECS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    code = process.wait()
        if code not in (EXIT_OK, EXIT_DATA_LOST):
            raise DaemonError(f"tracekitd could not seal the trace, what was recorded is kept in {self.spool}")
        return code

    def _start(self) -> subprocess.Popen[bytes]:
        from tracekit.rpc.client import wait_ready

        argv = [sys.executable, "-m", "tracekitd", "--attached", "--listen", self.address]
        argv += ["--spool", str(self.spool), "--seal", str(self.output)]
        # a session of its own: Ctrl-C is for the job, the daemon ends after it
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)
        deadline = time.monotonic() + READY_SECS
        try:
            while True:
                try:
                    wait_ready(self.address, 1.0)
                    break
                except DaemonError:
                    if process.poll() is not None:
                        raise DaemonError("tracekitd did not start, see above") from None
                    if time.monotonic() > deadline:
                        raise
        except TracekitError:
            process.kill()
            process.wait()
            raise
        return process

    def _watch(self) -> None:
        """Start the daemon anew when somebody kills it: recorders send again what it had not confirmed."""
        for _ in range(MAX_RESTARTS):
            assert self._process is not None
            while self._process.poll() is None:
                time.sleep(0.2)
            with self._lock:
                if self._stopping:
                    return
                print("tracekit: tracekitd was killed and is started anew", file=sys.stderr, flush=True)
                try:
                    self._process = self._start()
                except TracekitError as error:
                    print(f"tracekit: {error}", file=sys.stderr, flush=True)
                    return


def _ask_to_seal(process: subprocess.Popen[bytes]) -> None:
    """What an attached tracekitd takes for the end (its option `--attached`)."""
    process.send_signal(signal.SIGCONT)  # a stopped process cannot end
    assert process.stdin is not None
    with contextlib.suppress(OSError):  # it has ended
        process.stdin.write(b"end\n")
        process.stdin.flush()
