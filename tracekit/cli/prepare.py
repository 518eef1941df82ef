"""What `tracekit record` runs: a rollout of prompts in an engine environment, or the user's own command."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import click

from tracekit.errors import OutputError, UsageError


def check_targets(output: Path | None, daemon: str | None, completions: Path | None) -> None:
    """Make sure, before anything is started, that the outputs can be created and the daemon answers.

    Raises:
        OutputError: an output exists already or cannot be written.
        DaemonError: nobody answers there, or in another protocol.
    """
    from tracekit.jobs.sidecar import spool_of
    from tracekit.rpc.client import ControlClient
    from tracekit.trace.output import check_outputs

    check_outputs(output, completions)
    if output is not None and (spool := spool_of(output)).exists():
        raise OutputError(f"a recording was cut off, `tracekit info` shows what it left: move it away: {spool}")
    if daemon is not None:
        ControlClient(daemon).describe()


def own_command(
    argv: list[str], engine: str | None, python: Path | None, taken: dict[str, Any]
) -> tuple[list[str], dict[str, str]]:
    """Return the command and its environment: the caller's, or an engine's where one is named.

    Raises:
        UsageError: there is no such command.
        EngineEnvError: the engine environment cannot be had.
    """
    _say_defaults(taken)
    environ = _environment(engine or "v1", python)[1] if engine or python else dict(os.environ)
    if shutil.which(argv[0], path=environ.get("PATH")) is None:
        there = os.path.exists(argv[0]) and os.sep in argv[0]
        raise UsageError(f"{'this is not an executable file' if there else 'there is no such command'}: {argv[0]}")
    return argv, environ


def rollout(
    folder: Path,
    engine: str | None,
    python: Path | None,
    taken: dict[str, Any],
    *,
    model: str | None,
    prompts: str | None,
    sampling: tuple[str, ...],
    engine_arg: tuple[str, ...],
    completions: Path | None,
) -> tuple[list[str], dict[str, str]]:
    """Check the prompts, make the model and the engine environment, and return the command that runs the rollout.

    Args:
        folder: for the job file.
        engine: name of the engine environment; None for v1.
        python: an interpreter of the user's own, in place of an engine environment.
        taken: the options that were left out so far and what was taken for them; said with those of the rollout.
        model: a folder, "demo", or None for the demo model.
        prompts: a file, "demo", or None for the demo's prompts.
        sampling: KEY=VALUE, defaults of all prompts.
        engine_arg: KEY=VALUE, for `vllm.LLM`.
        completions: where what the client received is written as well.

    Raises:
        UsageError: the prompts or a field are wrong, or there is no such engine.
        NoModelFolderError: there is no such model folder.
        EngineEnvError: the engine environment or the demo model cannot be had.
    """
    from tracekit.cli.models import model_folder
    from tracekit.demo.settings import fill_in
    from tracekit.jobs.pairs import parse_pairs
    from tracekit.jobs.rollout_job import RolloutJob

    filled = fill_in(model, prompts, parse_pairs(sampling), parse_pairs(engine_arg))
    job = RolloutJob.of(filled.prompts, filled.sampling, filled.engine_args)
    _say_defaults(({} if engine or python else {"--engine": "v1"}) | filled.taken | taken)
    path = model_folder(filled.model)
    interpreter, environ = _environment(engine or "v1", python)
    return job.argv(interpreter, path, folder, completions), environ


def _say_defaults(taken: dict[str, Any]) -> None:
    from tracekit.report.record import defaults_line

    if taken:
        click.echo(defaults_line(taken), err=True)


def _environment(engine: str, python: Path | None) -> tuple[Path, dict[str, str]]:
    from tracekit.engines import env
    from tracekit.engines.talk import Talk

    with Talk() as talk:
        found = env.from_python(python) if python else env.ensure(engine, talk)
    path = f"{found.python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return found.python, {**os.environ, **found.environ, "PATH": path}
