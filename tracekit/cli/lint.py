"""`tracekit lint`: settings that are known to break parity, from a trace or before a run."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tracekit.errors import EXIT_DATA_LOST, EXIT_DIVERGED, EXIT_FAILED, EXIT_OK, UsageError


@click.command("lint")
@click.argument("trace", required=False)
@click.option(
    "--engine-config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Engine arguments as .json or .toml, before a run.",
)
@click.option(
    "--engine",
    type=click.Choice(["v1", "latest"]),
    default="v1",
    show_default=True,
    help="Whose defaults fill in what --engine-config does not say.",
)
@click.option(
    "--trainer-config",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The trainer's model folder: TRACE is compared with its config.json and generation_config.json.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(
    trace: str | None, engine_config: Path | None, engine: str, trainer_config: Path | None, as_json: bool
) -> int:
    """Name the settings of TRACE, or of a file of engine arguments, that are known to break parity.

    Exit codes: 0 nothing breaks parity, 4 something does (risks and notes alone are 0), 3 nothing does in what is left
    of a trace that lost data, 1 nor in a trace without an engine, a token or a finished request.
    """
    from tracekit.audit.lint.from_file import read_arguments, subject_of
    from tracekit.audit.lint.from_trace import subjects_of
    from tracekit.audit.lint.run import lint, to_facts
    from tracekit.audit.lint.trainer import read_trainer
    from tracekit.cli import sources
    from tracekit.report.lint import to_lines
    from tracekit.trace.lacking import lacking

    if (trace is None) == (engine_config is None):
        raise UsageError("give either a TRACE or --engine-config FILE")
    if engine_config is not None:
        if trainer_config is not None:
            raise UsageError("--trainer-config needs a TRACE, which has the configuration that the engine resolved")
        subject, unread = subject_of(read_arguments(engine_config), engine, str(engine_config))
        facts = to_facts(str(engine_config), lint([subject]), unread=unread)
    else:
        trainer = None if trainer_config is None else read_trainer(trainer_config)
        opened = sources.opened(str(trace))
        fired = lint(subjects_of(opened, trainer))
        facts = to_facts(str(trace), fired, complete=opened.complete, notes=opened.notes(), lacks=lacking(opened))
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(to_lines(facts)))
    if facts["breaks_parity"]:
        return EXIT_DIVERGED
    if facts["lacks"]:
        return EXIT_FAILED
    return EXIT_OK if facts["complete"] else EXIT_DATA_LOST
