"""Run a job as if tracekit were not there: its signals, its exit status, and the recorder let into its vLLM."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping

from tracekit.errors import UsageError


def through_plugins(environ: Mapping[str, str]) -> dict[str, str]:
    """Let the recorder through vLLM's plugin allow-list, where the job has one."""
    allowed = environ.get("VLLM_PLUGINS")
    if allowed is None or "tracekit" in allowed.split(","):
        return dict(environ)
    return {**environ, "VLLM_PLUGINS": ",".join(filter(None, [allowed, "tracekit"]))}


def run_job(argv: list[str], environ: Mapping[str, str]) -> int:
    """Run the job to its end; Ctrl-C reaches it as it would without us, and we wait for it to clean up.

    Returns:
        Its exit status; 128 + N where signal N ended it, as a shell would say.

    Raises:
        UsageError: it cannot be started.
    """
    try:
        process = subprocess.Popen(argv, env=dict(environ))
    except OSError as error:
        raise UsageError(f"the command cannot be started ({error.strerror}): {argv[0]}") from None
    forward = {s: signal.signal(s, lambda n, _: process.send_signal(n)) for s in (signal.SIGTERM, signal.SIGHUP)}
    ignored = signal.signal(signal.SIGINT, lambda *_: None)  # the terminal sends it to the job as well
    try:
        code = process.wait()
    finally:
        for number, handler in forward.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGINT, ignored)
    return 128 - code if code < 0 else code
