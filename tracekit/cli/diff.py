"""`tracekit diff`: two recordings of the same prompts against each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tracekit.replay.output import Replay


@click.command("diff")
@click.argument("first")
@click.argument("second")
@click.option("--model", metavar="DIR|URL|NAME", help="Replay both with this model: then noise is told from change.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True,
              help="With --model, the trainer's body precision.")  # fmt: skip
@click.option("--fail-on", "rules", multiple=True, metavar="RULE",
              help="Fail only where this is true, as mismatch_kl>1e-3; may be given several times.")  # fmt: skip
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE",
              help="Write it as a page; with --model, both replays side by side.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def command(
    first: str, second: str, model: str | None, dtype: str, rules: tuple[str, ...], html: Path | None, as_json: bool
) -> int:
    """Say what moved between two traces of the same prompts: two engines, versions or settings.

    \b
    tracekit diff v0.arrow v1.arrow
    tracekit diff before.arrow after.arrow --model MODEL --fail-on 'mismatch_kl>1e-3'

    Requests are paired by their prompt's ids, and compared up to the first sampled id that differs. Exit codes: 0 equal
    to the bit, or with --model within noise, 4 not, 1 nothing could be compared, 3 as 0 but data was lost.
    """
    from tracekit.audit.settings import differing_settings
    from tracekit.cli import sources
    from tracekit.cli.models import model_folder
    from tracekit.cli.pages import write_pair
    from tracekit.diagnose.diff import Difference, compare
    from tracekit.diagnose.gate import check, parse_predicate
    from tracekit.diagnose.plain import plain
    from tracekit.errors import EXIT_DATA_LOST, EXIT_DIVERGED, EXIT_FAILED, EXIT_OK
    from tracekit.objects.address import is_url
    from tracekit.replay.pairs import noise_lines, pair_traces
    from tracekit.report.diff import to_facts, to_lines
    from tracekit.trace.output import check_output

    if html:
        check_output(html)
    predicates = [parse_predicate(text, "difference.metrics", "difference") for text in rules]
    traces = sources.opened(first), sources.opened(second)
    paired = pair_traces(*traces)
    replays: list[Replay] = []
    if model is not None:
        from tracekit.replay.runner import replay

        folder = model if is_url(model) else model_folder(model)
        replays = [replay(trace, folder, dtype=dtype, show_progress=True) for trace in traces]
    lines = (noise_lines(replays[0]), noise_lines(replays[1])) if replays else None
    difference = compare(paired, lines)
    checked = [
        check({"difference": plain(difference)}, predicate, {"difference": Difference}) for predicate in predicates
    ]
    lost = not all(trace.complete for trace in traces)
    results = [found.result for found in replays]
    facts = to_facts((first, second), difference, differing_settings(*traces), results, checked, lost=lost)
    click.echo(json.dumps(facts, indent=2) if as_json else "\n".join(to_lines(facts)))
    if html:
        columns = dict(zip(("first", "second"), replays, strict=True)) if replays else {}
        write_pair(html, "First against second", to_lines(facts), columns)
    states = {one.state for one in checked}
    if difference.outcome == "nothing compared" or "cannot tell" in states:
        return EXIT_FAILED
    moved = "fires" in states if checked else difference.outcome in ("differs", "beyond noise")
    return EXIT_DIVERGED if moved else EXIT_DATA_LOST if lost else EXIT_OK
