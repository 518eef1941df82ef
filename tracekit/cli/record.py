"""``tracekit record``: a prompts file through an engine, or any command that uses vLLM, into a trace."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Set
from pathlib import Path
from typing import Any

import click

from tracekit.errors import EXIT_DATA_LOST, EXIT_FAILED, EXIT_OK, EngineEnvError, UsageError
from tracekit.recorder.settings import LOGPROBS


@click.command("record", context_settings={"ignore_unknown_options": False})
@click.option("--engine", metavar="v0|v1|latest", help="The engine environment to run in (built on first use).")
@click.option("--python", "python", type=click.Path(path_type=Path), help="Run in your own environment instead.")
@click.option("--model", metavar="DIR|demo", help="Model folder for --prompts; 'demo' is SmolLM2-135M-Instruct.")
@click.option("--prompts", type=click.Path(path_type=Path), help="JSONL: prompt, messages or prompt_token_ids a line.")
@click.option("--sampling", multiple=True, metavar="KEY=VALUE", help="Default sampling field of all prompts.")
@click.option("--engine-arg", multiple=True, metavar="KEY=VALUE", help="Passed to vllm.LLM; VALUE is JSON or text.")
@click.option("--logprobs", metavar="client|engine|both", help="Also those no client asks for; raw and processed.")
@click.option("--completions", type=click.Path(path_type=Path), help="Also write what the client received (JSONL).")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The trace to write.")
@click.option("--daemon", metavar="ADDR", help="Send to a daemon that runs already; the trace is its own.")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
def command(
    engine: str | None,
    python: Path | None,
    model: str | None,
    prompts: Path | None,
    sampling: tuple[str, ...],
    engine_arg: tuple[str, ...],
    logprobs: str | None,
    completions: Path | None,
    output: Path | None,
    daemon: str | None,
    cmd: tuple[str, ...],
) -> int:
    """Record what a vLLM engine really does.

    \b
    tracekit record --engine v1 --model demo --prompts prompts.jsonl -o trace.arrow
    tracekit record -o trace.arrow -- python my_job.py
    """
    from tracekit.cli.models import model_folder
    from tracekit.jobs.sidecar import Sidecar, run_job, through_plugins
    from tracekit.trace.output import check_output

    if bool(cmd) == bool(prompts):
        raise UsageError("give either --prompts FILE or a command after --")
    if bool(output) == bool(daemon):
        raise UsageError("give either -o TRACE or --daemon ADDR")
    if prompts and not model:
        raise UsageError("--prompts needs --model")
    if cmd and (model or sampling or engine_arg or completions):
        raise UsageError("--model, --sampling, --engine-arg and --completions go with --prompts, not with a command")
    if logprobs not in (None, *LOGPROBS):
        raise UsageError(f"--logprobs is one of {', '.join(LOGPROBS)}, not {logprobs!r}")
    if output is not None:
        check_output(output)
    if daemon is not None:
        from tracekit.rpc.client import ControlClient

        ControlClient(daemon).describe()
    if completions is not None:
        check_output(completions)
    job: dict[str, Any] = {}
    if prompts is not None:
        from tracekit.jobs.prompts import check_sampling, parse_prompts

        job = {"prompts": parse_prompts(prompts), "sampling": check_sampling(pairs(sampling))}
        job["engine_args"] = pairs(engine_arg)
        job["model"] = str(model_folder(str(model)))
    environ = dict(os.environ)
    if engine or python or prompts:
        argv_python, environ = _environment(engine or "v1", python)
    if logprobs is not None:
        environ["TRACEKIT_LOGPROBS"] = logprobs
    with tempfile.TemporaryDirectory(prefix="tracekit-job-") as folder:
        argv = list(cmd)
        if prompts is not None:
            job["output"] = str(completions or Path(folder) / "completions.jsonl")
            path = Path(folder) / "job.json"
            path.write_text(json.dumps(job))
            argv = [str(argv_python), "-m", "tracekit.jobs.rollout", str(path)]
        elif shutil.which(argv[0], path=environ.get("PATH")) is None:
            raise UsageError(f"there is no such command: {argv[0]}")
        if daemon is not None:
            before = _notes(daemon)
            code = run_job(argv, through_plugins({**environ, "TRACEKIT_DAEMON": daemon}))
            return _job_ended(code) or _tell_undelivered(_notes(daemon).items() - before.items())
        assert output is not None
        with Sidecar(output) as sidecar:
            try:
                code = run_job(argv, sidecar.environ(environ))
            except UsageError:  # it never ran: leave no empty trace in the way of the next try
                sidecar.stop()
                output.unlink()
                raise
            sealed = sidecar.stop()
    failed = _job_ended(code)
    return failed or _tell(output) or sealed


def pairs(options: tuple[str, ...]) -> dict[str, Any]:
    """Parse ``key=value`` options; a value that is JSON is taken as such, anything else is text.

    Raises:
        UsageError: an option without ``=``.
    """
    parsed: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals or not key:
            raise UsageError(f"this should be KEY=VALUE: {option!r}")
        try:
            parsed[key.replace("-", "_")] = json.loads({"True": "true", "False": "false"}.get(value, value))
        except ValueError:
            parsed[key.replace("-", "_")] = value
    return parsed


def _environment(engine: str, python: Path | None) -> tuple[Path, dict[str, str]]:
    from tracekit.engines import env
    from tracekit.engines.talk import Talk

    with Talk() as talk:
        found = env.from_python(python) if python else env.ensure(engine, talk)
    path = f"{found.python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return found.python, {**os.environ, **found.environ, "PATH": path}


def _job_ended(code: int) -> int:
    if code:
        click.echo(f"tracekit: the job ended with exit status {code}", err=True)
        return EXIT_FAILED
    return EXIT_OK


def _notes(daemon: str) -> dict[Path, int]:
    """What recorders noted down beside the daemon's socket because nobody took it, and when; also of earlier jobs."""
    return {p: p.stat().st_mtime_ns for p in Path(daemon.removeprefix("unix:")).parent.glob("undelivered-*.json")}


def _tell_undelivered(notes: Set[tuple[Path, int]]) -> int:
    for path, _ in sorted(notes):
        try:
            note = json.loads(path.read_text())
            rows = ", ".join(f"{count} {table}" for table, count in sorted(note["rows"].items()))
            click.echo(f"tracekit: not delivered: {rows} ({note['reason']})", err=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            click.echo(f"tracekit: rows were not delivered, but this note of them cannot be read: {path}", err=True)
    return EXIT_DATA_LOST if notes else EXIT_OK


def _tell(output: Path) -> int:
    from tracekit.trace.reader import open_trace

    trace = open_trace(output)
    engines = trace.engines()
    if not engines:
        output.unlink()  # empty, and in the way of the next try
        raise EngineEnvError(
            "the job ended and no engine reported, so there is no trace: "
            "is tracekit installed in the job's environment, and does it use vLLM?"
        )
    num_tokens, num_requests = trace.rows("tokens"), trace.rows("requests")
    click.echo(f"{output}: {num_tokens} tokens, {num_requests} requests, {len(engines)} engine(s)")
    losses = trace.losses()
    for loss in losses:
        click.echo(f"tracekit: lost: {loss['rows']} ({loss['reason']})", err=True)
    sys.stdout.flush()
    return EXIT_OK if trace.complete else EXIT_DATA_LOST
