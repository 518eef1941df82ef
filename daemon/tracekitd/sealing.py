"""The end of a recording: what recorders could not deliver, and the spool made into one trace."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tracekit.errors import EXIT_DATA_LOST, EXIT_OK, NoteError
from tracekit.rpc import idle, note
from tracekit.trace.seal import SealReport, seal
from tracekit.trace.segments import LOCK_NAME, segment_paths
from tracekitd.catalog import Catalog


def undelivered(folder: Path, catalog: Catalog) -> list[dict[str, Any]]:
    """Return the losses that recorders left as notes in a folder.

    A recorder writes down what was not confirmed to it; what arrived after all is taken out by its own counters.
    """
    losses = []
    for path in note.find(folder):
        try:
            left = note.read(path)
        except NoteError as error:
            print(f"tracekitd: {error}", file=sys.stderr, flush=True)
            continue
        engine = catalog.find(left.engine_id)
        from_seq = engine.durable_seq + 1 if engine else 1
        missing = Counter(left.produced)
        missing.subtract(engine.produced if engine else {})
        if rows := dict(+missing):
            losses.append(
                {
                    "engine_id": left.engine_id,
                    "from_seq": from_seq,
                    "to_seq": max(from_seq, left.to_seq),
                    "reason": left.reason,
                    "rows": rows,
                }
            )
    return losses


def seal_spool(spool: Path, out: Path, notes: Path, catalog: Catalog) -> int:
    """Make `out` of the spool, remove the spool and the notes, and return the exit code: 3 where data was lost.

    Where no engine reported there is no `out`: an empty one would be in the way of the next recording.

    Raises:
        TracekitError: the trace could not be written; the spool stays.
    """
    claims = {engine.engine_id: idle.read(notes, engine.engine_id) for engine in catalog.engines()}
    told = {engine_id: seq for engine_id, seq in claims.items() if seq is not None}
    report = seal(spool, out, undelivered(notes, catalog), told)
    for path in (*segment_paths(spool), spool / LOCK_NAME, *note.find(notes)):
        path.unlink(missing_ok=True)
    for engine_id in claims:
        idle.remove(notes, engine_id)
    with contextlib.suppress(OSError):  # somebody keeps other things in it
        spool.rmdir()
    if not report.engines:
        out.unlink()
        print(f"tracekitd: no engine reported, so there is no trace: {out}", file=sys.stderr, flush=True)
        return EXIT_OK
    _tell(report)
    return EXIT_OK if report.complete else EXIT_DATA_LOST


def _tell(report: SealReport) -> None:
    rows = ", ".join(f"{table} {count:,}" for table, count in report.rows.items() if count and table != "losses")
    print(f"tracekitd: sealed {report.path}, rows: {rows or 'none'}", file=sys.stderr)
    for loss in report.losses:
        print(f"tracekitd: lost: {loss}", file=sys.stderr)
    for noted in report.notes:
        print(f"tracekitd: note: {noted}", file=sys.stderr)
    sys.stderr.flush()
