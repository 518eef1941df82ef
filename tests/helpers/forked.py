"""Daemons whose imports are made once: forked from one process that has them, where thousands are started."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from tracekitd.__main__ import main


class Forked:
    """What `subprocess.Popen` is of a daemon, as far as tests need it."""

    def __init__(self, argv: list[str], log: Path) -> None:
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tracekitd.server"])
        self._process = context.Process(target=_serve, args=(argv[argv.index("tracekitd") + 1 :], log))
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once it has ended."""
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("tracekitd", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """Send one, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)


def _serve(argv: list[str], log: Path) -> None:
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(fd, 2)
    os.close(fd)
    main(argv)
