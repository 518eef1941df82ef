"""`tracekit record`: a prompts file through an engine, or any command that uses vLLM, into a trace."""

from __future__ import annotations

import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracekit.errors import EXIT_DATA_LOST, EXIT_OK, EngineEnvError, UsageError
from tracekit.plain import plain

if TYPE_CHECKING:
    from tracekit.jobs.recorded import Ended
    from tracekit.trace.reader import Trace


class _OwnCommand(click.Command):
    """Tells `record --` from `record`: whose command is an empty variable does not want the demo instead."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line.

        Raises:
            UsageError: no command follows `--`.
        """
        if args[-1:] == ["--"]:
            raise UsageError("no command follows --")
        return super().parse_args(ctx, args)


@click.command("record", cls=_OwnCommand)
@click.option("--engine", metavar="v0|v1|latest", help="The engine environment to run in, built on first use.")
@click.option("--python", type=click.Path(path_type=Path), help="Run in your own environment instead.")
@click.option("--model", metavar="DIR|NAME",
              help="Model folder, or demo (SmolLM2-135M-Instruct) or gemma3-270m  [default: demo]")  # fmt: skip
@click.option("--prompts", metavar="FILE|demo",
              help="JSONL: prompt, messages or prompt_token_ids in each line  [default: demo]")  # fmt: skip
@click.option("--sampling", multiple=True, metavar="KEY=VALUE", help="Default sampling field of all prompts.")
@click.option("--engine-arg", multiple=True, metavar="KEY=VALUE", help="Passed to vllm.LLM; VALUE is JSON or text.")
@click.option("--logprobs", metavar="client|engine|both", help="Also those no client asks for; raw and processed.")
@click.option("--probe", type=click.Path(path_type=Path), metavar="DIR",
              help="Also keep the first requests' states at module boundaries in this new folder.")  # fmt: skip
@click.option(
    "--run", metavar="NAME", help="Your name of the run, which its engines and its trainer have in the trace."
)
@click.option("--redact", type=click.Path(path_type=Path), metavar="FILE",
              help="Record prompts and tokens as hashes by the key in FILE (mode 0600).")  # fmt: skip
@click.option("--lossless", is_flag=True, help="Let the engine wait where the daemon cannot keep up; drop nothing.")
@click.option("--max-stall-ms", type=click.IntRange(min=0), metavar="MS",
              help="The longest that it waits at once; 0: no limit  [default: 60000]")  # fmt: skip
@click.option("--completions", type=click.Path(path_type=Path), help="Also write what the client received (JSONL).")
@click.option("-o", "--output", type=click.Path(path_type=Path),
              help="The trace to write; nothing is overwritten  [default: trace.arrow]")  # fmt: skip
@click.option("--daemon", metavar="ADDR", help="Send to a daemon that runs already; the trace is its own.")
@click.option("--follow", is_flag=True, help="Show the engines meanwhile: tokens a second, weights, requests, losses.")
@click.argument("cmd", nargs=-1, type=click.UNPROCESSED)
def command(engine: str | None, python: Path | None, output: Path | None, daemon: str | None, **given: Any) -> int:
    """Record what a vLLM engine really does: prompts through an engine environment, or your own command.

    \b
    tracekit record --engine v1
    tracekit record --engine v1 --model MODEL --prompts prompts.jsonl -o trace.arrow
    tracekit record -o trace.arrow -- python my_job.py

    What is left out is taken by default, and said: the demo's prompts, sampling and model, the engine v1 (your command
    runs in its own environment), and trace.arrow. Exit codes: 0 recorded, 1 failed, 3 recorded but rows were lost; the
    job's own where it failed, and what it did until then is in the trace.
    """
    from tracekit.cli.following import followed
    from tracekit.cli.prepare import check_targets, own_command, rollout
    from tracekit.jobs.recorded import into_trace, through_daemon
    from tracekit.recorder.redact import redaction
    from tracekit.recorder.settings import LOGPROBS
    from tracekit.trace.output import check_output

    cmd, logprobs, probe, follow = (given.pop(name) for name in ("cmd", "logprobs", "probe", "follow"))
    lossless, max_stall_ms, run = given.pop("lossless"), given.pop("max_stall_ms"), given.pop("run")
    redact = given.pop("redact")
    if redact is not None:
        if probe is not None:
            raise UsageError("--probe keeps states that tell the prompts, it does not go with --redact")
        redaction(redact)
    if max_stall_ms is not None and not lossless:
        raise UsageError("--max-stall-ms goes with --lossless")
    if cmd and any(given.values()):
        raise UsageError("--model, --prompts, --sampling, --engine-arg and --completions do not go with a command")
    if output and daemon:
        raise UsageError("give either -o TRACE or --daemon ADDR, not both")
    if logprobs not in (None, *LOGPROBS):
        raise UsageError(f"--logprobs is one of {', '.join(LOGPROBS)}, not {logprobs!r}")
    if probe is not None:
        check_output(probe)
    taken: dict[str, Any] = {}
    if not (output or daemon):
        output = Path("trace.arrow")
        taken["-o"] = output
    check_targets(output, daemon, given["completions"])
    with tempfile.TemporaryDirectory(prefix="tracekit-job-") as folder:
        if cmd:
            argv, environ = own_command(list(cmd), engine, python, taken)
        else:
            argv, environ = rollout(Path(folder), engine, python, taken, **given)
        if logprobs is not None:
            environ["TRACEKIT_LOGPROBS"] = logprobs
        if run is not None:
            environ["TRACEKIT_RUN"] = run
        if redact is not None:
            environ["TRACEKIT_REDACT_KEY_FILE"] = str(redact.absolute())
        if lossless:
            environ["TRACEKIT_LOSSLESS"] = "1"
        if max_stall_ms is not None:
            environ["TRACEKIT_MAX_STALL_MS"] = str(max_stall_ms)
        if probe is not None:
            environ["TRACEKIT_PROBE"] = str(probe.absolute())
        beside = {"beside": followed} if follow else {}
        if output:
            ended = into_trace(argv, environ, output, **beside)
        else:
            ended = through_daemon(argv, environ, str(daemon), **beside)
    return _tell(ended, output)


def _tell(ended: Ended, output: Path | None) -> int:
    """Say what was recorded and lost, whatever the job's status, and return the exit code: the job's own, if it failed.

    Raises:
        EngineEnvError: the job succeeded and no engine reported.
    """
    from tracekit.report import record as report
    from tracekit.trace.reader import open_trace

    for note in ended.undelivered:
        _say(report.undelivered_line(*note))
    nothing = output is not None and not output.exists()
    if output is not None and not nothing:
        trace = open_trace(output)
        click.echo(report.recorded_line(output, trace.rows("tokens"), trace.rows("requests"), len(trace.numbers)))
        sys.stdout.flush()
        for line in report.lost_lines(trace.all_losses()):
            _say(line)
        for line in report.note_lines(trace.notes()):
            _say(line)
        for pid in _still_running(trace):
            _say(report.still_running_line(pid))
    if ended.code:
        _say(report.job_ended_line(ended.code, nothing))
        return ended.code
    if nothing:
        raise EngineEnvError(report.NOBODY_REPORTED)
    return EXIT_OK if ended.complete else EXIT_DATA_LOST


def _say(line: str) -> None:
    click.echo(plain(line), err=True)  # a recorded name or reason may hold anything


def _still_running(trace: Trace) -> list[int]:
    """Return the engine processes that outlived the job: vLLM's does not notice that who started it was killed."""
    here = socket.gethostname()
    open_ends = [row for row in trace.engines() if not trace.tallies[row["engine"]].last and row.get("host") == here]
    return [row["pid"] for row in open_ends if Path(f"/proc/{row['pid']}").exists()]
