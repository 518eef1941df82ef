"""What a writer finds when it takes a spool that another one left: where each engine stands, and what is not durable.

What was read here came out of the page cache, and a sync that failed before the other writer ended may have left it
there alone. So nothing that the index does not call whole is trusted: the writer copies it into a new segment first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from tracekit.errors import TraceCorruptError
from tracekit.trace.index import Index, Standing, read_index
from tracekit.trace.ledger import Loss
from tracekit.trace.runs import joined
from tracekit.trace.segments import HotBatch, last_of_part, newest, salvage, segment_number, segment_paths
from tracekit.trace.sources import Source, part_paths


@dataclass
class Found:
    """What lies in a spool.

    Attributes:
        index: as it was, or a new one; it has news of the damage that was met.
        tail: the good batches that the index does not know to be on the disk, each once.
        superseded: the segments that hold nothing but such batches: to be removed when those are copied.
        whole: segments of which an earlier part is on the disk, and the size of that part.
        cut: the same, by path, where there is more to them: to be cut when that is copied.
        others: batches that the index does know, read only where it names a file that is not what it says.
        doubted: it does.
        next_number: of the next segment.
    """

    index: Index
    others: list[HotBatch] = field(default_factory=list)
    doubted: bool = False
    tail: list[HotBatch] = field(default_factory=list)
    superseded: list[Path] = field(default_factory=list)
    whole: dict[str, int] = field(default_factory=dict)
    cut: dict[Path, int] = field(default_factory=dict)
    next_number: int = 0


def look(folder: Path) -> Found:
    """Read what is in the folder, and change nothing.

    Raises:
        SchemaTooNewError: a newer tracekit wrote it.
    """
    paths = segment_paths(folder)
    try:
        index = read_index(folder)
        lost = index is None and bool(paths)
    except TraceCorruptError as error:
        index, lost = Index(), True
        index.incident(f"{error}; it was made anew from the segments")
    found = Found(index or Index(), next_number=_next([*paths, *part_paths(folder)], index))
    if index is None or lost:
        found.index.engines = _from_parts(folder)
    nonce = "" if lost or index is None else index.nonce
    listed = {**found.index.whole, **found.index.growing}
    gone = set(found.index.superseded)
    found.doubted = any(_size(folder / name) < size for name, size in listed.items() if name not in gone)
    if found.doubted:
        parts = _from_parts(folder)
        found.index.engines = {
            name: replace(parts.get(name, Standing(0)), engine=standing.engine)
            for name, standing in found.index.engines.items()
        }
    for path in paths:
        size = _size(path)
        if path.name in found.index.superseded:
            continue
        if found.index.whole.get(path.name) == size:
            if found.doubted:
                found.others += [item for item in salvage(path, nonce) if isinstance(item, HotBatch)]
            continue
        start = found.index.growing.get(path.name, 0)
        if found.doubted:
            start = 0  # what is left of it is read
        if _tail(path, nonce, start, found, lost):
            continue  # it cannot be read now, and may be later
        found.index.whole.pop(path.name, None)
        if start:
            found.whole[path.name] = start
            if size > start:
                found.cut[path] = start
        else:
            found.superseded.append(path)
    found.tail = newest(found.tail)
    if not nonce and found.tail:
        found.index.nonce = found.tail[0].meta.nonce  # what is copied keeps it
    return found


def _tail(path: Path, nonce: str, start: int, found: Found, lost: bool) -> bool:
    """Read one segment into `found`; return whether it cannot be read at all."""
    for item in salvage(path, nonce, start):
        if isinstance(item, HotBatch):
            found.tail.append(item)
            continue
        if item.what:
            return True
        if not item.at_end:
            found.index.incident(f"{item}; what it held was not confirmed, or is counted as lost")
            found.index.blind = found.index.blind or lost
    return False


def _from_parts(folder: Path) -> dict[str, Standing]:
    """Return how far the parts of a spool say that each engine has got, where there is no index to say it."""
    found: dict[str, Standing] = {}
    for number, (engine_id, runs) in enumerate(Source.sealed_runs(part_paths(folder)).items()):
        run = joined(runs)[0] if runs else None
        if run is not None and run.first == 1:
            found[engine_id] = Standing(number, run.last, run.produced, run.lost, run.goodbye)
        else:
            found[engine_id] = Standing(number)
    return found


def _next(paths: Iterable[Path], index: Index | None) -> int:
    names = [path.name for path in paths] + ([*index.whole, *index.growing, *index.parts] if index else [])
    numbers = [segment_number(name) for name in names] + [last_of_part(name) for name in names]
    return max((number for number in numbers if number is not None), default=-1) + 1


def standings(spool: Found) -> dict[str, Standing]:
    """Return how far each engine has got without a gap; a gap that the batch behind it reports as lost is none."""
    found = dict(spool.index.engines)
    by_engine: dict[str, list[HotBatch]] = {}
    for batch in newest([*spool.others, *spool.tail]):
        by_engine.setdefault(batch.meta.engine_id, []).append(batch)
    for name, batches in by_engine.items():
        standing = found.setdefault(name, Standing(batches[0].meta.engine))
        for batch in sorted(batches, key=lambda batch: batch.meta.seq):
            meta = batch.meta
            if meta.seq <= standing.seq:
                continue
            if meta.first > standing.seq + 1 and not _bridged(batch, standing.seq + 1):
                break
            found[name] = standing = Standing(
                standing.engine, meta.seq, meta.produced, meta.lost, standing.last or meta.last
            )
    return found


def _bridged(batch: HotBatch, first: int) -> bool:
    """Whether the losses that a batch reports reach from `first` up to it."""
    if not batch.meta.rows.get("losses"):
        return False
    rows = batch.load(["losses"]).column("losses").flatten().to_pylist()
    for loss in sorted((Loss.from_row(row) for row in rows), key=lambda loss: loss.from_seq):
        if loss.from_seq <= first:
            first = max(first, loss.to_seq + 1)
    return first >= batch.meta.first


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return -1
