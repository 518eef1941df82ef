"""Parts of a spool: segments that were sealed while the recording goes on, each a trace of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tracekit.errors import OutputExistsError
from tracekit.trace.index import Index, Standing
from tracekit.trace.reader import Trace
from tracekit.trace.runs import touched
from tracekit.trace.seal import seal_part
from tracekit.trace.segments import part_name, segment_number
from tracekit.trace.sources import Source, part_paths


@dataclass(frozen=True)
class Made:
    """A part that is on the disk, and the segments that it holds."""

    path: Path
    segments: list[str]
    damage: list[str]


def make_part(folder: Path, names: Iterable[str], index: Index, standings: Mapping[str, Standing]) -> Made | None:
    """Seal segments of a spool into one part; None where they hold batches that may yet come again.

    It holds about a million tokens in memory at a time.

    Raises:
        OutputError: the disk refused.
    """
    names = sorted(names, key=lambda name: segment_number(name) or 0)
    source = Source.of_segments(folder, names, index)
    for batch in source.batches:
        standing = standings.get(batch.meta.engine_id)
        if standing is None or batch.meta.seq > standing.seq:
            return None  # behind a gap that its recorder may still fill
    unreadable = {damage.path.name for damage in source.damage if damage.what}
    sealed = Source.sealed_runs(part_paths(folder))
    source.batches = [
        batch
        for batch in source.batches
        if not touched(sealed.get(batch.meta.engine_id, ()), batch.meta.first, batch.meta.seq)
    ]
    path = folder / part_name(segment_number(names[0]) or 0, segment_number(names[-1]) or 0)
    try:
        seal_part(Trace(str(folder), [source]), path)
    except OutputExistsError:
        pass  # made by a writer that was killed before it could say so, of the same segments
    return Made(path, [name for name in names if name not in unreadable], [str(damage) for damage in source.damage])
