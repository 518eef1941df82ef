"""The note of what a recorder could not deliver: written by the recorder as it ends, read by who counts losses.

One JSON file for each engine, in a folder that both ends know; with a unix socket that is the socket's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from tracekit.errors import NoteError
from tracekit.rpc.address import socket_of

PREFIX, SUFFIX = "undelivered-", ".json"


class Note(NamedTuple):
    """Rows of one engine that the daemon did not confirm.

    Example:
        Note("9f…", from_seq=7, to_seq=9, reason="no daemon answered", rows={"tokens": 96}, produced={"tokens": 4096})
    """

    engine_id: str
    from_seq: int  # of the first batch that was not confirmed
    to_seq: int
    reason: str
    rows: dict[str, int]  # by table, not confirmed
    produced: dict[str, int]  # by table, since the engine began


def folder_of(address: str) -> Path | None:
    """Return the folder of the notes for a daemon: that of a `unix:` address's socket, None for other addresses."""
    path = socket_of(address)
    return None if path is None else path.parent


def write(folder: Path, note: Note) -> None:
    """Leave a note in a folder, in place of the engine's last one; readers see all of it or nothing.

    Raises:
        OSError: it cannot be written.
    """
    draft = folder / f".{PREFIX}{note.engine_id}.tmp"
    draft.write_text(json.dumps(note._asdict()))
    draft.replace(folder / f"{PREFIX}{note.engine_id}{SUFFIX}")


def find(folder: Path) -> list[Path]:
    """Return the notes in a folder, sorted by engine."""
    return sorted(folder.glob(f"{PREFIX}*{SUFFIX}"))


def read(path: Path) -> Note:
    """Return a note, trusting nothing in it.

    Raises:
        NoteError: it cannot be read, or a recorder did not write it.
    """
    try:
        found = json.loads(path.read_bytes())
        return Note(
            engine_id=str(found["engine_id"]),
            from_seq=int(found["from_seq"]),
            to_seq=int(found["to_seq"]),
            reason=str(found["reason"]),
            rows=_counts(found["rows"]),
            produced=_counts(found["produced"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise NoteError(f"this is not a note of a recorder: {path}") from None


def _counts(value: dict[str, Any]) -> dict[str, int]:
    return {str(table): int(count) for table, count in value.items()}
