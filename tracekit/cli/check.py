"""`tracekit check`: rules over the result of a replay, as a gate for CI."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tracekit.errors import EXIT_DATA_LOST, EXIT_DIVERGED, EXIT_FAILED, EXIT_OK


@click.command("check")
@click.argument("replay", type=click.Path(path_type=Path))
@click.option(
    "--fail-on",
    "rules",
    multiple=True,
    metavar="RULE",
    help="Fail where this is true, as mismatch_kl>1e-3; may be given several times  [default: layer!=none]",
)
@click.option("--junit", type=click.Path(path_type=Path), metavar="FILE", help="Write JUnit's XML to this new file.")
@click.option("--sarif", type=click.Path(path_type=Path), metavar="FILE", help="Write SARIF to this new file.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(replay: Path, rules: tuple[str, ...], junit: Path | None, sarif: Path | None, as_json: bool) -> int:
    """Hold REPLAY, from `tracekit replay -o` or `--json`, against rules over its numbers.

    \b
    tracekit check replay.arrow --fail-on 'mismatch_kl>1e-3' --fail-on layer==semantic

    Exit codes: 0 no rule fires, 4 one does, 1 a rule's number is not known, or the verdict is
    withheld in part, 3 none fires but data was lost.
    """
    from typing import get_type_hints

    from tracekit.diagnose.gate import DEFAULT, check, parse_predicate
    from tracekit.diagnose.result import Result
    from tracekit.replay.output import read_result
    from tracekit.report import check as report
    from tracekit.trace.output import check_outputs, new_file

    check_outputs(junit, sarif)
    predicates = [parse_predicate(text) for text in rules or (DEFAULT,)]
    result = read_result(replay).to_dict()
    checked = [check(result, predicate, get_type_hints(Result)) for predicate in predicates]
    for path, render in ((junit, report.to_junit), (sarif, report.to_sarif)):
        if path is not None:
            with new_file(path) as out:
                out.write(render(str(replay), checked).encode())
    lost = bool(result["data"]["lost"])
    facts = report.to_facts(str(replay), checked, lost=lost, withheld=result["outcome"] == "withheld")
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(report.to_lines(facts)))
    states = {one.state for one in checked}
    if "fires" in states:
        return EXIT_DIVERGED
    if "cannot tell" in states or facts["withheld"]:
        return EXIT_FAILED
    return EXIT_DATA_LOST if lost else EXIT_OK
