"""A tracekitd of one recording: started beside the job, stopped after it, its spool sealed into the trace."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tracekit.errors import EXIT_DATA_LOST, EXIT_OK, DaemonError, TracekitError

READY_SECS = 20.0
STOP_SECS = 120.0  # sealing a long trace takes a while


class Sidecar:
    """Runs tracekitd on a private unix socket while the ``with`` block lasts.

    Args:
        output: where the sealed trace goes; its spool is ``<output>.spool`` until then.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.spool = output.with_name(output.name + ".spool")
        self._folder = Path(tempfile.mkdtemp(prefix="tracekit-"))  # 0700, and short: socket paths end at 107 bytes
        self.address = f"unix:{self._folder / 'd.sock'}"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Process id of the daemon, 0 before it is started."""
        return self._process.pid if self._process else 0

    def __enter__(self) -> "Sidecar":
        from tracekit.rpc.client import wait_ready

        argv = [sys.executable, "-m", "tracekitd", "--listen", self.address]
        argv += ["--spool", str(self.spool), "--seal", str(self.output), "--quiet"]
        # a session of its own: Ctrl-C is for the job, the daemon ends after it
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            wait_ready(self.address, READY_SECS)
        except TracekitError:
            self._abandon()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)  # a stopped daemon cannot end
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def environ(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return ``base`` with the daemon's address in it, and the recorder let through vLLM's plugin allow-list."""
        added = {**base, "TRACEKIT_DAEMON": self.address}
        allowed = base.get("VLLM_PLUGINS")
        if allowed is not None and "tracekit" not in allowed.split(","):
            added["VLLM_PLUGINS"] = ",".join(filter(None, [allowed, "tracekit"]))
        return added

    def stop(self) -> int:
        """End the daemon and seal the trace; where it was killed, seal what its spool holds.

        Returns:
            EXIT_OK, or EXIT_DATA_LOST where rows were lost.
        """
        if self._process is None:
            return EXIT_OK
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            code = self._process.wait(STOP_SECS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if code in (EXIT_OK, EXIT_DATA_LOST):
            return code
        return self._seal_leftovers(code)

    def _seal_leftovers(self, code: int) -> int:
        from tracekitd.closing import seal_spool

        if self.output.exists() or not self.spool.exists():
            raise DaemonError(f"tracekitd ended with {code} and left no trace to seal: {self.spool}")
        return seal_spool(self.spool, self.output, self._folder)

    def _abandon(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
        if self.spool.exists() and not any(p.stat().st_size for p in self.spool.glob("hot-*")):
            shutil.rmtree(self.spool, ignore_errors=True)


def run_job(argv: list[str], environ: Mapping[str, str], cwd: str | os.PathLike[str] | None = None) -> int:
    """Run the job to its end; Ctrl-C reaches it as it would without us, and we wait for it to clean up.

    Returns:
        Its exit status; 128 + N where signal N ended it, as a shell would say.
    """
    process = subprocess.Popen(argv, env=dict(environ), cwd=cwd)
    forward = {s: signal.signal(s, lambda n, _: process.send_signal(n)) for s in (signal.SIGTERM, signal.SIGHUP)}
    ignored = signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends it to the job as well
    try:
        code = process.wait()
    finally:
        for number, handler in forward.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGINT, ignored)
    return 128 - code if code < 0 else code
