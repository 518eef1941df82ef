"""What can be saved of a damaged trace: every batch that proves itself, wherever it lies, and a word about the rest."""

from __future__ import annotations

import os
from pathlib import Path

from tracekit.errors import NotATraceError, TraceError, UnreadableTraceError
from tracekit.trace.durable import OpenFile
from tracekit.trace.output import check_output
from tracekit.trace.reader import Trace, open_trace
from tracekit.trace.seal import SealReport, seal_trace
from tracekit.trace.segments import Damage, HotBatch, salvage, salvage_sealed
from tracekit.trace.sources import Source, part_paths


def recover(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> SealReport:
    """Write what is good of a trace into the new sealed trace `out`; at most a damaged batch is left out.

    Args:
        path: a sealed file, a spool, or a segment; it stays as it is.
        out: as of `seal`.

    Raises:
        NotATraceError: there is no batch of a trace in it at all.
        TraceError: it cannot be read.
        OutputError: `out` exists, or cannot be written.
    """
    given = Path(path)
    check_output(out)
    if not os.path.lexists(given):
        raise TraceError(f"there is no such trace: {given}")
    if given.is_dir():
        sources = [Source.spool(given), *map(_saved, part_paths(given))]
    else:
        sources = [_saved(given)]
    if not any(source.batches for source in sources) and not _is_empty(given):
        raise NotATraceError(f"there is nothing of a trace in it: {given}")
    return seal_trace(Trace(str(given), sources), out)


def _saved(path: Path) -> Source:
    """Return the batches of one file that prove themselves, of a sealed one those that its footer hides as well."""
    source = Source()
    source.files = [path]
    try:
        is_stream = OpenFile(path).read(0, 4) == b"\xff\xff\xff\xff"
    except OSError as error:
        raise UnreadableTraceError(path, error) from None
    for item in salvage(path) if is_stream else salvage_sealed(path):
        if isinstance(item, HotBatch):
            source.batches.append(item)
        else:
            source.damage.append(item)
    source.is_sealed = any(batch.meta.of for batch in source.batches)
    if source.is_sealed:
        source.damage = _missing(path, source)
    return source


def _missing(path: Path, source: Source) -> list[Damage]:
    """Return the batches that a sealed file had and has no more, unless its other ones tell whose they were."""
    there = {batch.meta.seq: batch.meta for batch in source.batches}
    found = []
    for number in range(1, max(meta.of for meta in there.values()) + 1):
        if number not in there:
            before, behind = (there.get(near) for near in (number - 1, number + 1))
            # an engine's batches lie together, and each carries the counters of all of them
            known = before is not None and behind is not None and before.engine_id == behind.engine_id
            found.append(Damage(path, 0, 0, False, f"has lost its batch {number}", told=known))
    return found


def _is_empty(path: Path) -> bool:
    try:
        return not open_trace(path).stored
    except TraceError:
        return False
