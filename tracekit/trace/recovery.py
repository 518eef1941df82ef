"""What a writer finds when it takes a spool that another one left: where each engine stands, and what is not durable.

What was read here came out of the page cache, and a sync that failed before the other writer ended may have left it
there alone. So nothing that the index does not call whole is trusted: the writer copies it into a new segment first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tracekit.errors import TraceCorruptError
from tracekit.trace.index import Index, Standing, read_index
from tracekit.trace.ledger import Loss
from tracekit.trace.segments import HotBatch, newest, salvage, segment_number, segment_paths


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
        index, lost = read_index(folder), False
    except TraceCorruptError as error:
        index, lost = Index(), True
        index.incident(f"{error}; it was made anew from the segments")
    found = Found(index or Index(), next_number=_next(paths, index))
    nonce = "" if lost or index is None else index.nonce
    listed = {**found.index.whole, **found.index.growing}
    found.doubted = any(_size(folder / name) < size for name, size in listed.items())
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


def _next(paths: Iterable[Path], index: Index | None) -> int:
    names = [path.name for path in paths] + ([*index.whole, *index.growing] if index else [])
    return max((number for name in names if (number := segment_number(name)) is not None), default=-1) + 1


def standings(spool: Found) -> dict[str, Standing]:
    """Return how far each engine has got without a gap; a gap that the batch behind it reports as lost is none."""
    found = {
        name: Standing(standing.engine) if spool.doubted else standing for name, standing in spool.index.engines.items()
    }
    by_engine: dict[str, list[HotBatch]] = {}
    for batch in newest([*spool.others, *spool.tail]):
        by_engine.setdefault(batch.meta.engine_id, []).append(batch)
    for name, batches in by_engine.items():
        standing = found.setdefault(name, Standing(batches[0].meta.engine))
        for batch in sorted(batches, key=lambda batch: batch.meta.seq):
            meta = batch.meta
            if meta.seq <= standing.seq:
                continue
            if (meta.first_seq or meta.seq) > standing.seq + 1 and not _bridged(batch, standing.seq + 1):
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
    return first >= (batch.meta.first_seq or batch.meta.seq)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return -1
