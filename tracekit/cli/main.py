"""The `tracekit` group: commands are imported only when they run, and every error ends here as one sentence."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys

import click

from tracekit import __version__
from tracekit.errors import EXIT_FAILED, OutputError, TraceCorruptError, TracekitError, TraceTruncatedError
from tracekit.plain import PlainStream, ReaderGone, plain

# what people do -> name -> one line for the list; the module is tracekit.cli.<name>
GROUPS = {
    "Record": {
        "record": "Record prompts, or any command that uses vLLM.",
        "attach": "Start and stop recording engines that run.",
        "mark": "Label the weights that engines have now, in the trace that is being written.",
        "daemon": "Run tracekitd, the sidecar that writes traces.",
    },
    "Look": {
        "info": "Say what a trace holds.",
        "cat": "Print rows of one table of a trace.",
        "export": "Write the tables of a trace as Parquet, or as JSON lines.",
        "merge": "Make one trace of several.",
        "filter": "Make a trace of a part of another.",
        "recover": "Save what is good of a damaged trace.",
    },
    "Check": {
        "doctor": "Prove a trace against itself, and against what the client received.",
        "lint": "Name settings that are known to break parity, from a trace or before a run.",
        "check": "Hold a replay's numbers against rules, as a gate for CI.",
    },
    "Replay": {
        "replay": "Score a trace with an fp32-head trainer scorer and name the first diverging token.",
        "report": "Make a page of a replay: verdict, pictures, single tokens.",
        "diff": "Say what moved between two recordings of the same prompts.",
        "demo": "The whole story on a real engine: record twice, replay, compare.",
    },
    "Set up": {
        "engine": "Install and list engine environments.",
    },
}
_RECOVER = " (`tracekit recover` saves what is good of it)"
COMMANDS = {name: line for group in GROUPS.values() for name, line in group.items()}


class LazyGroup(click.Group):
    """Imports `tracekit.cli.<name>` when that command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, group by group."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"tracekit.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands under what people do with them."""
        width = max(map(len, COMMANDS))
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(width), line) for name, line in group.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="tracekit")
def cli() -> None:
    """Record what an inference engine really did, replay it, name the first diverging token.

    Exit codes: 0 clean, 1 failed, 2 usage, 3 finished but data was lost, 4 divergence found.
    """


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit; a TracekitError becomes one line on stderr and its own exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not where `nohup` ignores it
            signal.signal(number, _end)
    sys.stdout = PlainStream(sys.stdout)
    try:
        code = cli.main(args=argv, standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except TracekitError as error:
        hint = _RECOVER if isinstance(error, (TraceCorruptError, TraceTruncatedError)) else ""
        click.echo(plain(f"tracekit: error: {error}{hint}"), err=True)
        if isinstance(error, OutputError):
            _silence()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("tracekit: interrupted", err=True)
        sys.exit(EXIT_FAILED)
    except ReaderGone:
        _silence()
        sys.exit(128 + signal.SIGPIPE)  # as other programs end; 0 would be a verdict


def _silence() -> None:
    """Let the flush at exit, of what standard output did not take, end nowhere."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _end(number: int, _frame: object) -> None:
    """End as at Ctrl-C: half-written files go, and so does what we started."""
    sys.exit(128 + number)
