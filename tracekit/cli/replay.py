"""`tracekit replay`: score a trace with the trainer's weights and name the first diverging token."""

from __future__ import annotations

from pathlib import Path

import click

from tracekit.cli.numbers import Finite


@click.command(name="replay")
@click.argument("trace", type=click.Path())
@click.option("--model", metavar="DIR|URL|NAME", help="Folder, or s3:// URL, of the weights the trainer scores with  "
              "[default: the folder that the trace names as the engine's model]")  # fmt: skip
@click.option("--weights", multiple=True, metavar="[ENGINE:]V=PATH", help="Folder, or s3:// URL, of the weights of "
              "version V, where they changed in the run; of one engine's alone, where versions differ.")  # fmt: skip
@click.option("--only", type=click.IntRange(min=0), metavar="ENGINE", help="Number of the one engine to score.")
@click.option("-o", "--output", type=click.Path(), help="Write every token to this new Arrow file.")
@click.option("--html", type=click.Path(), metavar="FILE", help="Write the page of it to this new file.")
@click.option("--expect", type=click.Choice(["processed", "raw"]), default="processed", show_default=True,
              help="What the trainer takes the recorded logprobs for.")  # fmt: skip
@click.option("--dtype", type=click.Choice(["bfloat16", "float16", "float32"]), default="bfloat16", show_default=True,
              help="The trainer's body precision; the head is always float32.")  # fmt: skip
@click.option("--device", help="A torch device  [default: CUDA where there is one, else the CPU]")
@click.option("--max-batch-tokens", type=click.IntRange(min=1), help="Tokens scored together  [default: by device]")
@click.option("--budget", type=Finite(min=0, min_open=True), metavar="SECONDS",
              help="Score as many rollouts as this time allows, spread evenly.")  # fmt: skip
@click.option(
    "--workers", metavar="N|ray://HOST:PORT", help="Score on N processes of this machine, or on a Ray cluster."
)
@click.option("--engine", metavar="v0|v1|latest",
              help="Also force the recorded tokens through this engine, in the recorded composition.")  # fmt: skip
@click.option("--python", type=click.Path(), help="The same in your own environment.")
@click.option("--probes", type=click.Path(), metavar="DIR",
              help="Replay each module on the states that `record --probe DIR` kept.")  # fmt: skip
@click.option("--trainer", type=click.Path(), metavar="DUMP",
              help="What the trainer used: its framework's dump, a file or a folder. See docs/trainer.md.")  # fmt: skip
@click.option("--trainer-map", multiple=True, metavar="NAME=THEIRS", help="What a dump of no known format calls it.")
@click.option("--trainer-config", type=click.Path(), metavar="DIR",
              help="The trainer's model folder, compared with what the engine ran.")  # fmt: skip
@click.option("--clip", metavar="EPS|LOW,HIGH", help="The objective's clip range, as in 0.2 or 0.2,0.28.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON.")
def command(
    trace: str,
    model: str | None,
    weights: tuple[str, ...],
    only: int | None,
    output: str | None,
    html: str | None,
    expect: str,
    dtype: str,
    device: str | None,
    max_batch_tokens: int | None,
    budget: float | None,
    workers: str | None,
    engine: str | None,
    python: str | None,
    probes: str | None,
    trainer: str | None,
    trainer_map: tuple[str, ...],
    trainer_config: str | None,
    clip: str | None,
    as_json: bool,
) -> int:
    """Score TRACE with the trainer's weights and say which layer disagrees, since which token.

    Exit codes: 0 no divergence, 4 divergence found, 1 no divergence but the verdict on a part is withheld, 3 no
    divergence but data was lost in the trace.
    """
    from tracekit.cache import cache_dir
    from tracekit.cli import sources
    from tracekit.cli.models import model_folder
    from tracekit.errors import UsageError
    from tracekit.objects.address import is_url
    from tracekit.replay.output import write_replay
    from tracekit.replay.runner import replay
    from tracekit.report.json import to_json
    from tracekit.report.text import to_text
    from tracekit.trace.output import check_outputs

    folders = _parse_weights(weights)
    names = _parse_names(trainer_map)
    if names and not trainer:
        raise UsageError("--trainer-map goes with --trainer")
    check_outputs(output, html)
    found = replay(
        sources.opened(trace),
        model_folder(model) if model and not is_url(model) else model,
        expect=expect,
        only=only,
        weights=folders,
        dtype=dtype,
        device=device,
        max_batch_tokens=max_batch_tokens,
        budget_secs=budget,
        keep=cache_dir() / "replay",
        workers=workers,
        engine=engine,
        python=python,
        probes=probes,
        show_progress=True,
        trainer=trainer,
        trainer_map=names,
        trainer_config=trainer_config,
        clip=_parse_clip(clip),
    )
    try:
        if output:
            write_replay(found, output)
        if html:
            from tracekit.cli.pages import shown, write_page
            from tracekit.report.page.render import to_html

            write_page(Path(html), to_html(shown(found)))
    finally:  # a disk that is full takes no verdict of hours away
        click.echo(to_json(found.result) if as_json else to_text(found.result))
    return found.result.exit_code


def _parse_names(values: tuple[str, ...]) -> dict[str, str]:
    pairs = [value.partition("=") for value in values]
    if wrong := next((value for value, pair in zip(values, pairs, strict=True) if not (pair[0] and pair[2])), None):
        raise click.BadParameter(
            f"expected NAME=THEIRS, as in old_logprob=logps, got {wrong}", param_hint="--trainer-map"
        )
    return {name: theirs for name, _, theirs in pairs}


def _parse_clip(value: str | None) -> tuple[float, float] | None:
    if value is None:
        return None
    try:
        low, high = (float(part) for part in (value.split(",") if "," in value else (value, value)))
    except ValueError:
        low = high = -1.0
    if not (0 < low <= 1 and high > 0):
        raise click.BadParameter(f"expected EPS or LOW,HIGH, as in 0.2 or 0.2,0.28, got {value}", param_hint="--clip")
    return low, high


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 7


def _parse_weights(values: tuple[str, ...]) -> dict[int | tuple[int, int], str]:
    folders: dict[int | tuple[int, int], str] = {}
    for value in values:
        name, separator, path = value.partition("=")
        engine, colon, version = name.rpartition(":")
        if not separator or not _is_number(version) or not path or (colon and not _is_number(engine)):
            raise click.BadParameter(
                f"expected V=PATH or ENGINE:V=PATH, as in 1=./checkpoint-1, got {value}", param_hint="--weights"
            )
        key = (int(engine), int(version)) if colon else int(version)
        if key in folders:
            raise click.BadParameter(f"version {name} is given twice", param_hint="--weights")
        folders[key] = path
    return folders
