"""The end of a recording: what recorders could not deliver, and the spool made into one trace."""

from __future__ import annotations

import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from tracekit.errors import EXIT_DATA_LOST, EXIT_OK, NoteError, TracekitError
from tracekit.rpc import idle, note
from tracekit.tables import TABLES
from tracekit.trace.reader import open_trace
from tracekit.trace.seal import seal
from tracekit.trace.sealed import SealedFile
from tracekit.trace.spool import SpoolWriter
from tracekitd.catalog import Catalog
from tracekitd.log import say


def take_notes(spool: SpoolWriter, socket: Path, catalog: Catalog) -> None:
    """Put into the spool what recorders could not deliver, and remove their notes of it.

    A recorder writes down what was not confirmed to it; what arrived after all is taken out by its own counters.

    Raises:
        OutputError: the spool cannot be written; the notes stay.
    """
    losses: list[dict[str, Any]] = []
    taken: list[Path] = []
    for path in note.find(socket):
        try:
            left = note.read(path)
        except NoteError as error:
            say(str(error))
            continue
        taken.append(path)
        engine = catalog.find(left.engine_id)
        from_seq = engine.durable_seq + 1 if engine else 1
        missing = Counter(left.produced)
        missing.subtract(engine.produced if engine else {})
        if rows := dict(+missing):
            to_seq = max(from_seq, left.to_seq)
            losses.append({"engine_id": left.engine_id, "from_seq": from_seq, "to_seq": to_seq,
                           "reason": left.reason, "rows": rows})  # fmt: skip
    if losses:
        spool.add_losses(losses)
    for path in taken:
        path.unlink(missing_ok=True)


def seal_spool(spool: SpoolWriter, out: Path, notes: Path, catalog: Catalog) -> int:
    """Make `out` of the spool, remove what was sealed, and return the exit code: 3 where data was lost.

    Where no engine reported there is no `out`: an empty one would be in the way of the next recording.

    Raises:
        TracekitError: the trace could not be written; the spool stays.
    """
    claims = {engine.engine_id: idle.read(notes, engine.engine_id) for engine in catalog.engines()}
    told = {engine_id: seq for engine_id, seq in claims.items() if seq is not None}
    name = uuid.uuid4().hex
    spool.announce(out, name)
    report = seal(spool.folder, out, idle=told, name=name)
    if not report.engines:
        out.unlink()
    spool.forget(path.name for path in report.files if path.parent == spool.folder)
    spool.remove()
    for engine_id in claims:
        idle.remove(notes, engine_id)
    if not report.engines:
        say(f"no engine reported, so there is no trace: {out}")
        return EXIT_OK
    return tell(out)


def finish(spool: SpoolWriter) -> Path | None:
    """Remove what a daemon sealed that was killed before it could; return the trace that it made, if there is one."""
    seals = spool.seals
    try:
        if seals is None or SealedFile(Path(seals.out)).seal != seals.name:
            return None
    except TracekitError:
        return None
    spool.forget(seals.files)
    return Path(seals.out)


def tell(out: Path) -> int:
    """Say what a trace holds and what it does not, and return the exit code."""
    trace = open_trace(out)
    losses = trace.all_losses()
    counts = {table: trace.rows(table) for table in TABLES if table != "losses"}
    rows = ", ".join(f"{table} {count:,}" for table, count in counts.items() if count)
    say(f"sealed {out}, rows: {rows or 'none'}")
    for loss in losses:
        say(f"lost: {loss}")
    for noted in trace.notes():
        say(f"note: {noted}")
    return EXIT_DATA_LOST if losses else EXIT_OK
