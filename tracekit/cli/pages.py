"""What commands that write a page share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tracekit.errors import ModelError

if TYPE_CHECKING:
    import pyarrow as pa

    from tracekit.replay.output import Replay
    from tracekit.report.page.run import Shown


def shown(found: Replay, texts: Mapping[int, str] | None = None) -> Shown:
    """Return a replay as a page takes it; without `texts` those of its weights' tokenizer, where one is there.

    Args:
        found: the replay.
        texts: of token ids.
    """
    from tracekit.report.page.run import Shown

    timeline = {name: _columns(table) for name, table in found.timeline.items()}
    return Shown(found.result, _columns(found.tokens), _own_texts(found) if texts is None else texts, timeline)


def write_page(path: Path, page: str | bytes) -> None:
    """Write a page into a new file and say so.

    Raises:
        OutputError: the path exists or cannot be written.
    """
    from tracekit.trace.output import new_file

    with new_file(path) as file:
        file.write(page if isinstance(page, bytes) else page.encode())
    click.echo(f"{path}: {path.stat().st_size:,} bytes", err=True)


def write_pair(path: Path, title: str, lines: Iterable[str], replays: Mapping[str, Replay]) -> None:
    """Write a page with a column for each replay, under what was found between them.

    Raises:
        OutputError: the path exists or cannot be written.
    """
    from tracekit.report.page.render import to_html_pair

    write_page(path, to_html_pair(title, list(lines), {name: shown(found) for name, found in replays.items()}))


def _own_texts(found: Replay) -> dict[int, str]:
    from tracekit.replay.texts import texts_of

    folder = Path(found.result.scoring.weights[0].folder)
    try:
        return texts_of(found.tokens.column("token_id").to_numpy(), folder) if folder.is_dir() else {}
    except ModelError:
        return {}  # ids are shown instead


def _columns(table: pa.Table) -> dict[str, Any]:
    return {name: table.column(name).to_numpy() for name in table.column_names}
