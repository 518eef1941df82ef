"""``tracekit lint``: settings that are known to break parity, from a trace or before a run."""

import json
from pathlib import Path
from typing import Any

import click

from tracekit.errors import EXIT_DATA_LOST, EXIT_DIVERGED, EXIT_OK, UsageError


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
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(trace: str | None, engine_config: Path | None, engine: str, as_json: bool) -> int:
    """Name the settings of TRACE, or of a file of engine arguments, that are known to break parity.

    Exit codes: 0 nothing breaks parity, 4 something does (risks and notes alone are 0), 3 nothing does in what is left
    of a trace that lost data.
    """
    from tracekit.audit.lint.run import RULES, lint
    from tracekit.audit.lint.types import BREAKS

    if (trace is None) == (engine_config is None):
        raise UsageError("give either a TRACE or --engine-config FILE")
    unread: list[str] = []
    complete = True
    if engine_config is not None:
        from tracekit.audit.lint.from_file import read_arguments, subject_of

        subject, unread = subject_of(read_arguments(engine_config), engine, str(engine_config))
        subjects = [subject]
    else:
        from tracekit.audit.lint.from_trace import subjects_of
        from tracekit.trace.reader import open_trace

        opened = open_trace(str(trace))
        subjects, complete = subjects_of(opened), opened.complete
    fired = lint(subjects)
    breaks = sum(one.rule.severity == BREAKS for one in fired)
    facts = {
        "path": str(engine_config or trace),
        "rules": len(RULES),
        "breaks_parity": breaks,
        "complete": complete,
        "not_looked_at": unread,
        "fired": [one.to_dict() for one in fired],
    }
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(as_text(facts)))
    if breaks:
        return EXIT_DIVERGED
    return EXIT_OK if complete else EXIT_DATA_LOST


def as_text(facts: dict[str, Any]) -> list[str]:
    """Return the lines for the terminal."""
    lines = []
    for one in facts["fired"]:
        lines += [
            f"{one['severity'].upper()}  {one['id']}",
            f"  {one['where']}: {one['detail']}",
            f"  why  {one['why']}",
            f"  fix  {one['fix']}",
            f"  see  {one['reference']}",
            "",
        ]
    if facts["not_looked_at"]:
        lines.append(f"no rule looks at: {', '.join(facts['not_looked_at'])}")
    if not facts["complete"]:
        lines.append("data was lost in this trace: what is missing could not be judged")
    lines.append(f"{facts['rules']} rules, {len(facts['fired'])} hold, {facts['breaks_parity']} break parity")
    return lines
