"""Run `tracekit.jobs.forced` in an engine's environment and read what it left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tracekit.errors import ReplayRefused
from tracekit.replay.progress import Progress

_KIND = "re-run"


def run_forced(
    python: Path, environ: Mapping[str, str], job: Mapping[str, Any], num_tokens: int, *, show_progress: bool
) -> dict[str, Any]:
    """Run a job to its end and return its output.

    Args:
        python: the interpreter of the engine's environment.
        environ: of the process.
        job: what `tracekit.jobs.forced` is told, but for its output.
        num_tokens: that it will tell of.
        show_progress: a line on stderr with the time that is left.

    Raises:
        ReplayRefused: the engine cannot be had, or ended before its time.
    """
    with tempfile.TemporaryDirectory(prefix="tracekit-forced-") as name:
        folder = Path(name)
        output, log = folder / "forced.json", folder / "log"
        told, tell = os.pipe()
        (folder / "job.json").write_text(json.dumps({**job, "output": str(output), "progress": tell}))
        quiet = {} if os.environ.get("TRACEKIT_DEBUG") else {"VLLM_LOGGING_LEVEL": "ERROR"}
        argv = [str(python), "-m", "tracekit.jobs.forced", str(folder / "job.json")]
        with log.open("wb") as file, os.fdopen(told) as lines:
            # a session of its own: what it started goes with it
            process = subprocess.Popen(argv, env={**environ, **quiet}, stdout=file, stderr=file, pass_fds=(tell,),
                                       start_new_session=True)  # fmt: skip
            os.close(tell)
            with _ended_with_us(process), Progress(_KIND, {_KIND: num_tokens}, quiet=not show_progress) as progress:
                for number, line in enumerate(lines):
                    if not number:
                        progress.begin()  # until then the engine was started
                    progress.advance(_KIND, int(line))
                code = process.wait()
        if code or not output.exists():
            raise ReplayRefused(f"the engine of the re-run ended with status {code}: {_last_line(log)}")
        found: dict[str, Any] = json.loads(output.read_text())
    if "refused" in found:
        raise ReplayRefused(f"no re-run: {found['refused']}")
    return found


@contextmanager
def _ended_with_us(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the engine's own processes as well
        process.wait()
        raise


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
