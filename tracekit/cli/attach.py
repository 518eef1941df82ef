"""`tracekit attach`: start and stop recording engines that run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from tracekit.cli.numbers import Finite
from tracekit.errors import EXIT_FAILED, EXIT_OK, UsageError

_NOBODY = " (a job starts with what `tracekit attach --print-env` prints, and its engine must be up)"
_HOW = ("sample", "logprobs", "probe", "lossless", "max_stall_ms", "redact")  # of a start


@click.command("attach")
@click.argument("address", metavar="[ADDR]", required=False)
@click.option(
    "--start", "action", flag_value="start", help="Record them, from their next step on, to the daemon at ADDR."
)
@click.option(
    "--stop", "action", flag_value="stop", help="Record them no longer; with ADDR only those that send to it."
)
@click.option("--status", "action", flag_value="look", help="Say what they do; this is what happens with no option.")
@click.option("--follow", is_flag=True, help="Then show the engines of the daemon at ADDR, until Ctrl-C or its end.")
@click.option("--print-env", is_flag=True, help="Print what lets a job be attached to, with nothing installed.")
@click.option("--sample", type=Finite(0, 1, min_open=True), metavar="SHARE",
              help="Record this share of the requests, whole; an n>1 group stays together  [default: 1]")  # fmt: skip
@click.option("--logprobs", metavar="WHOSE", help="As in `tracekit record`: client, engine or both  [default: client]")
@click.option("--probe", type=click.Path(path_type=Path), metavar="DIR",
              help="Also keep states of requests that begin then, in this new folder beside the engine.")  # fmt: skip
@click.option("--lossless", is_flag=True, help="Let the engine wait where the daemon cannot keep up; drop nothing.")
@click.option("--max-stall-ms", type=click.IntRange(min=0), metavar="MS",
              help="The longest that it waits at once; 0: no limit  [default: 60000]")  # fmt: skip
@click.option("--redact", type=click.Path(path_type=Path), metavar="FILE",
              help="Record prompts and tokens as hashes by the key in FILE, which lies beside the engine.")  # fmt: skip
@click.option("--only", "pids", type=click.IntRange(min=1), multiple=True, metavar="PID",
              help="Only the engine of this process; may be repeated  [default: all]")  # fmt: skip
@click.option("--folder", type=click.Path(path_type=Path), metavar="DIR",
              help="Where they take orders  [default: TRACEKIT_ATTACH, or in the cache]")  # fmt: skip
@click.option("--timeout", type=Finite(min=0.1), default=10.0, show_default=True, metavar="SECS",
              help="How long they may take.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(address: str | None, action: str | None, follow: bool, print_env: bool, as_json: bool, **given: Any) -> int:
    """Start, stop or look at the recording of engines that run, on every machine that shares the attach folder.

    \b
    tracekit attach unix:/run/user/1000/tracekit/d.sock --start --sample 0.1
    tracekit attach --status
    tracekit attach --stop
    tracekit attach unix:/run/user/1000/tracekit/d.sock --follow

    An engine takes an order within a second and follows it between two of its steps; one that has no request starts
    with the next one. Exit codes: 0 all did what they were told, 1 some did not, or there is none.
    """
    from tracekit.cli import following
    from tracekit.jobs import attaching
    from tracekit.recorder.settings import attach_folder
    from tracekit.report import attach as report

    if action != "start" and (told := [name for name in _HOW if given[name]]):
        raise UsageError(f"--{told[0].replace('_', '-')} goes with --start")
    if follow and not address:
        raise UsageError("--follow needs the daemon's address")
    if follow and not action:
        following.follow(_absolute(str(address)))
        return EXIT_OK
    folder = given["folder"] or attach_folder()
    if folder is None:
        raise UsageError("TRACEKIT_ATTACH is off: name the folder where the engines take orders with --folder")
    folder = folder.absolute()
    if print_env:
        from tracekit.jobs.recorder_wheel import recorder_wheel

        click.echo(report.environment_lines(str(recorder_wheel()), str(folder)), nl=False)
        return EXIT_OK
    options = _options(address, given) if action == "start" else None
    of_daemon = _absolute(address) if address and action != "start" else None
    engines = attaching.find(folder, given["pids"], of_daemon)
    states = attaching.tell(folder, engines, action or "look", options, given["timeout"])
    if as_json:
        click.echo(json.dumps(states, indent=2))
    else:
        for state in states:
            click.echo(report.engine_line(state))
    troubles = [(state, report.trouble(state)) for state in states]
    for state, text in troubles:
        if text:
            click.echo(f"tracekit: error: pid {state.get('pid')}: {text}", err=True)
    if not states:
        click.echo(f"tracekit: error: no engine takes orders there{_NOBODY}: {folder}", err=True)
    if not states or any(text for _, text in troubles):
        return EXIT_FAILED
    if follow:
        following.follow(_absolute(str(address)))
    return EXIT_OK


def _absolute(address: str) -> str:
    """The address as an engine in another working directory needs it."""
    from tracekit.rpc.address import socket_of, tcp_of

    path = socket_of(address)
    if path is None and tcp_of(address) is None:
        raise UsageError(f"only unix: and grpcs:// addresses are supported, not {address}")
    return address if path is None else f"unix:{path.absolute()}"


def _options(address: str | None, given: Mapping[str, Any]) -> Any:
    from tracekit.recorder.settings import LOGPROBS, Options
    from tracekit.rpc.credentials import Access
    from tracekit.trace.output import check_output

    logprobs, probe, lossless, max_stall_ms, redact = (given[name] for name in _HOW[1:])

    if address is None:
        raise UsageError("--start needs the address of the daemon that rows go to")
    if logprobs not in (None, *LOGPROBS):
        raise UsageError(f"--logprobs is one of {', '.join(LOGPROBS)}, not {logprobs!r}")
    if max_stall_ms is not None and not lossless:
        raise UsageError("--max-stall-ms goes with --lossless")
    if probe is not None and redact is not None:
        raise UsageError("--probe keeps states that tell the prompts, it does not go with --redact")
    if probe is not None:
        check_output(probe)
    access = Access(*(None if file is None else str(Path(file).absolute()) for file in Access.of_environ()))
    return Options(
        _absolute(address),
        access,
        logprobs or "client",
        given["sample"] or 1.0,
        None if probe is None else str(probe.absolute()),
        lossless or None,  # where it is not said, what the job was started with stands
        max_stall_ms,
        None if redact is None else str(redact.absolute()),
    )
