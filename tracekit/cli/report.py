"""`tracekit report`: a replay as a page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("replay", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The new HTML file.")
@click.option("--perfetto", type=click.Path(path_type=Path), metavar="FILE",
              help="Also, or only, the engines' timeline for Perfetto; a name that ends in .gz is packed.")  # fmt: skip
@click.option(
    "--tokenizer",
    metavar="DIR|NAME",
    help="Show the texts of tokens, from this model folder  [default: ids]",
)
def command(replay: Path, output: Path | None, perfetto: Path | None, tokenizer: str | None) -> None:
    """Make one self-contained page of REPLAY, from `tracekit replay -o`: it opens from a disk, without a network.

    \b
    tracekit replay trace.arrow -o replay.arrow
    tracekit report replay.arrow -o report.html --tokenizer MODEL
    tracekit report replay.arrow --perfetto timeline.json.gz
    """
    from tracekit.cli.models import model_folder
    from tracekit.cli.pages import shown, write_page
    from tracekit.errors import UnreadableTraceError, UsageError
    from tracekit.replay.output import read_replay
    from tracekit.replay.texts import texts_of
    from tracekit.report.page.render import to_html
    from tracekit.report.perfetto import to_perfetto
    from tracekit.trace.output import check_outputs

    if not (output or perfetto):
        raise UsageError("say what to write: -o FILE for the page, --perfetto FILE for the timeline")
    check_outputs(output, perfetto)
    try:
        found = read_replay(replay)
    except OSError as error:
        raise UnreadableTraceError(replay, error) from None
    texts = texts_of(found.tokens.column("token_id").to_numpy(), model_folder(tokenizer)) if tokenizer else {}
    page = shown(found, texts)
    if output:
        write_page(output, to_html(page))
    if perfetto:
        if not page.timeline:
            raise UsageError(f"this replay holds no timeline, replay the trace again: {replay}")
        packed = perfetto.suffix == ".gz"
        write_page(perfetto, to_perfetto(page.result, page.tokens, page.timeline, packed=packed))
