"""`tracekit report`: a replay as a page."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("report")
@click.argument("replay", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The new HTML file.")
@click.option(
    "--tokenizer",
    metavar="DIR|NAME",
    help="Show the texts of tokens, from this model folder  [default: ids]",
)
def command(replay: Path, output: Path, tokenizer: str | None) -> None:
    """Make one self-contained page of REPLAY, from `tracekit replay -o`: it opens from a disk, without a network.

    \b
    tracekit replay trace.arrow -o replay.arrow
    tracekit report replay.arrow -o report.html --tokenizer MODEL
    """
    from tracekit.cli.models import model_folder
    from tracekit.cli.pages import shown, write_page
    from tracekit.errors import UnreadableTraceError
    from tracekit.replay.output import read_replay
    from tracekit.replay.texts import texts_of
    from tracekit.report.page.render import to_html
    from tracekit.trace.output import check_output

    check_output(output)
    try:
        found = read_replay(replay)
    except OSError as error:
        raise UnreadableTraceError(replay, error) from None
    texts = texts_of(found.tokens.column("token_id").to_numpy(), model_folder(tokenizer)) if tokenizer else {}
    write_page(output, to_html(shown(found, texts)))
