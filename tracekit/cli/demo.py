"""`tracekit demo`: the same prompts through V1 twice, both replayed, the story on one screen."""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import click


@click.command("demo")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Tokens to sample for each of the 16 prompts.",
)
@click.option("--model", default="demo", show_default=True, help="demo (SmolLM2-135M-Instruct) or gemma3-270m.")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Keep the traces and replays here.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Write both as one page, side by side.")
@click.option("--json", "as_json", is_flag=True, help="Print both verdicts as JSON.")
def command(max_tokens: int, model: str, keep: Path | None, html: Path | None, as_json: bool) -> None:
    """Show on a real engine (vLLM 0.18.1, SmolLM2-135M-Instruct) what breaks a policy ratio, and where it starts.

    Records 16 prompts twice, once with V1's defaults and once with processed logprobs and the parity settings, and
    replays both against a trainer that expects processed logprobs. Builds what it needs on the first run.
    """
    from tracekit.cli.models import model_folder
    from tracekit.demo.models import MODELS
    from tracekit.demo.settings import PARITY, SAMPLING
    from tracekit.demo.story import RUNS, replay_of, run, trace_of
    from tracekit.engines import env
    from tracekit.engines.talk import Talk
    from tracekit.replay.output import read_replay
    from tracekit.report.demo import story
    from tracekit.trace.output import check_output

    if model not in MODELS:
        raise click.BadParameter(f"it is one of {', '.join(MODELS)}, not {model}", param_hint="--model")
    with Talk() as talk:
        found = env.ensure("v1", talk)
    model_folder(model)
    facts: dict[str, Any] = {
        "vllm": found.vllm_version,
        "model": MODELS[model].title,
        "sampling": {**SAMPLING, "max_tokens": max_tokens},
        "parity_settings": PARITY,
    }
    with tempfile.TemporaryDirectory(prefix="tracekit-demo-") as temporary:
        folder = keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in RUNS:
            check_output(trace_of(name, folder))
        if html:
            check_output(html)
        for name in RUNS:
            facts[name] = run(name, folder, model, max_tokens, lambda line: click.echo(line, err=True))
        if html:
            from tracekit.cli.pages import write_pair
            from tracekit.report.demo import RUNS as TITLES

            replays = {title: read_replay(replay_of(name, folder)) for name, title in TITLES.items()}
            write_pair(html, "The same prompts through V1 twice", story(facts), replays)
    click.echo(json.dumps(facts, indent=2) if as_json else "\n" + "\n".join(story(facts)))
    if keep:
        click.echo(
            f"The traces are in {keep}: try `tracekit info {shlex.quote(str(trace_of('defaults', keep)))}`.",
            err=as_json,
        )
