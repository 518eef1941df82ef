"""The note of what a recorder could not deliver: written by the recorder as it ends, read by who counts losses.

One JSON file for each engine, beside the socket that it spoke to and with the socket's name in front: daemons may have
theirs in one folder.
"""

from __future__ import annotations

import glob
import json
import os
import re
import stat
import uuid
from pathlib import Path
from typing import NamedTuple

from tracekit.errors import NoteError
from tracekit.rpc import messages
from tracekit.tables import TABLES

PREFIX, SUFFIX = "undelivered-", ".json"
MAX_BYTES = 64 << 10


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


def write(socket: Path, note: Note) -> None:
    """Leave a note beside a daemon's socket, in place of the engine's last one; readers see all of it or nothing.

    Raises:
        OSError: it cannot be written.
    """
    draft = socket.with_name(f".{socket.name}.{PREFIX}{note.engine_id}.{uuid.uuid4().hex[:8]}.tmp")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(json.dumps(note._asdict()).encode())
        draft.replace(_path(socket, note.engine_id))
    except OSError:
        draft.unlink(missing_ok=True)
        raise


def find(socket: Path) -> list[Path]:
    """Return the notes for the daemon of a socket, sorted by engine."""
    return sorted(socket.parent.glob(f"{glob.escape(socket.name)}.{PREFIX}*{SUFFIX}"))


def read(path: Path) -> Note:
    """Return a note, trusting nothing in it.

    Raises:
        NoteError: it cannot be read, or a recorder did not write it.
    """
    try:
        found = json.loads(_read(path))
        note = Note(
            engine_id=found["engine_id"],
            from_seq=found["from_seq"],
            to_seq=found["to_seq"],
            reason=found["reason"],
            rows=found["rows"],
            produced=found["produced"],
        )
        if _is_sound(note):
            return note
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise NoteError(f"this is not a note of a recorder: {path}")


def _path(socket: Path, engine_id: str) -> Path:
    return socket.with_name(f"{socket.name}.{PREFIX}{engine_id}{SUFFIX}")


def _read(path: Path) -> bytes:
    """Return a small file that is one: not a link to somebody's, not a pipe that never ends."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_BYTES:
            raise ValueError
        return file.read(MAX_BYTES)


def _is_sound(note: Note) -> bool:
    texts = isinstance(note.engine_id, str) and isinstance(note.reason, str)
    return (
        texts
        and re.fullmatch("[0-9a-f]{32}", note.engine_id) is not None
        and len(note.reason.encode()) <= messages.MAX_TEXT  # a lone surrogate cannot be encoded
        and 1 <= _number(note.from_seq) <= _number(note.to_seq) <= messages.MAX_SEQ
        and all(_are_counts(counts) for counts in (note.rows, note.produced))
    )


def _are_counts(counts: object) -> bool:
    return (
        isinstance(counts, dict)
        and counts.keys() <= TABLES.keys()
        and all(0 <= _number(count) <= messages.MAX_COUNT for count in counts.values())
    )


def _number(value: object) -> int:
    return value if type(value) is int else -1
