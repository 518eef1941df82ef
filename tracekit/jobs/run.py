"""Run a job as if tracekit were not there: its signals, its exit status, and the recorder let into its vLLM."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping

from tracekit.errors import UsageError
from tracekit.jobs.signals import answered_by


def through_plugins(environ: Mapping[str, str]) -> dict[str, str]:
    """Let the recorder through vLLM's plugin allow-list, where the job has one."""
    allowed = environ.get("VLLM_PLUGINS")
    if allowed is None or "tracekit" in allowed.split(","):
        return dict(environ)
    return {**environ, "VLLM_PLUGINS": ",".join(filter(None, [allowed, "tracekit"]))}


def run_job(argv: list[str], environ: Mapping[str, str], terminal: int | None = None) -> int:
    """Run the job to its end; what asks us to end reaches it as it would without us, and we wait for it to clean up.

    Args:
        argv: the command.
        environ: all of its environment.
        terminal: a descriptor for what it would write on a terminal; None: that terminal.

    Returns:
        Its exit status; 128 + N where signal N ended it, as a shell would say.

    Raises:
        UsageError: it cannot be started.
    """
    process: subprocess.Popen[bytes] | None = None
    early: list[int] = []

    def hand_on(number: int) -> None:
        if process is None:
            early.append(number)
        elif number != signal.SIGINT:  # Ctrl-C: the terminal sends it to the job as well
            process.send_signal(number)

    with answered_by(hand_on):
        try:
            out, err = (terminal if os.isatty(fd) else None for fd in (1, 2))
            process = subprocess.Popen(argv, env=dict(environ), stdout=out, stderr=err)
        except OSError as error:
            raise UsageError(f"the command cannot be started ({error.strerror}): {argv[0]}") from None
        for number in early:
            process.send_signal(number)
        code = process.wait()
    return 128 - code if code < 0 else code
