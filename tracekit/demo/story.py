"""The demo's two runs, each recorded and replayed with the commands that a user would type."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tracekit.demo.settings import PARITY
from tracekit.errors import EXIT_DATA_LOST, EXIT_DIVERGED, EXIT_OK, EngineEnvError

RUNS: dict[str, dict[str, Any]] = {"defaults": {}, "parity": PARITY}

Say = Callable[[str], None]


def trace_of(name: str, folder: Path) -> Path:
    """Return where the trace of one run goes."""
    return folder / f"{name}.arrow"


def replay_of(name: str, folder: Path) -> Path:
    """Return where the replay of one run goes."""
    return folder / f"{name}.replay.arrow"


def run(name: str, folder: Path, model: str, max_tokens: int, say: Say) -> dict[str, Any]:
    """Record and replay one of `RUNS`; its trace and its replay stay in `folder`.

    Args:
        name: the run.
        folder: it exists, and holds neither file yet.
        model: a name of `MODELS`.
        max_tokens: how many tokens each of the 16 prompts may get.
        say: is handed one line of text at a time.

    Returns:
        What `tracekit replay --json` printed.

    Raises:
        EngineEnvError: a command failed.
    """
    trace = trace_of(name, folder)
    argv = ["record", "--engine", "v1", "--model", model, *_pairs("--engine-arg", RUNS[name])]
    argv += [*_pairs("--sampling", {"max_tokens": max_tokens}), "-o", str(trace)]
    begin = time.monotonic()
    _tracekit(argv, folder / f"{name}.record.log", say)
    say(f"{name}: recorded in {time.monotonic() - begin:.0f} s, replaying")
    replayed = replay_of(name, folder)
    facts: dict[str, Any] = json.loads(
        _tracekit(["replay", str(trace), "--model", model, "-o", str(replayed), "--json"], None, say)
    )
    return facts


def _pairs(option: str, values: Mapping[str, Any]) -> list[str]:
    return [word for key, value in values.items() for word in (option, f"{key}={_value(value)}")]


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _tracekit(argv: list[str], log: Path | None, say: Say) -> str:
    """Run one tracekit command and return what it printed; its talk goes to `log`, or to our stderr.

    Raises:
        EngineEnvError: it failed; the text is its last line.
    """
    # the CPU build of 0.18.1 compiles two small sampler functions for a minute; the numbers are the same without
    environ = {**os.environ, "TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    say(f"$ tracekit {' '.join(_short(word) for word in argv)}")
    with open(log, "wb") if log else tempfile.TemporaryFile() as talk:
        done = subprocess.run(
            [sys.executable, "-m", "tracekit", *argv],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=talk if log else None,
        )
    if done.returncode not in (EXIT_OK, EXIT_DIVERGED):
        said = log.read_text(errors="replace").strip().splitlines() if log else []
        lost = " (rows were lost)" if done.returncode == EXIT_DATA_LOST else ""
        raise EngineEnvError(f"tracekit {argv[0]} ended with {done.returncode}{lost}: {said[-1] if said else ''}")
    return done.stdout.decode()


def _short(word: str) -> str:
    for prefix, short in ((f"{Path.cwd()}/", ""), (str(Path.home()), "~")):
        if word.startswith(prefix):
            return word.replace(prefix, short, 1)
    return word
