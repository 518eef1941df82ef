"""Where the batches of a trace lie: a sealed file, or the hot segments of a spool."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from tracekit.errors import NotArrowError, TraceCorruptError, TraceError, UnreadableTraceError
from tracekit.tables import SCHEMA_VERSION
from tracekit.trace.batch import BatchMeta
from tracekit.trace.durable import OpenFile
from tracekit.trace.hold import is_live
from tracekit.trace.index import INDEX_NAME, Index, Part, Standing, read_index
from tracekit.trace.runs import Run, touched
from tracekit.trace.sealed import MAGIC, SealedFile
from tracekit.trace.segments import Damage, HotBatch, salvage, scan, segment_paths

_ATTEMPTS = 5
_GONE = "this spool was sealed or removed meanwhile: {}"


class Stored(Protocol):
    """A batch that lies on the disk, verified when it is loaded."""

    @property
    def meta(self) -> BatchMeta:
        """What the batch says of itself."""

    def load(self, tables: Sequence[str] | None = None) -> pa.RecordBatch:
        """Read and verify the tables named, or all."""


class Source:
    """A sealed file, or the hot segments of one spool.

    Attributes:
        engines: by id, how far the spool's index says that each has got.
        losses: that the index has of recorders: engine_id, from_seq, to_seq, reason, rows.
        notes: what happened and lost nothing.
    """

    schema_version: int = SCHEMA_VERSION
    live: bool = False
    is_sealed: bool = False

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.batches: list[Stored] = []
        self.damage: list[Damage] = []
        self.engines: dict[str, Standing] = {}
        self.losses: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.index: Index | None = None

    @classmethod
    def sealed(cls, path: Path, name: str | None = None) -> Source:
        """Open a sealed file, which errors call `name`."""
        source, file = cls(), SealedFile(path, name)
        source.schema_version, source.is_sealed = file.schema_version, True
        source.files = [path]
        source.batches = list(file.batches)
        source.notes = list(dict.fromkeys(text for batch in file.batches for text in batch.meta.notes))
        return source

    @classmethod
    def of_segments(cls, folder: Path, names: Iterable[str], index: Index) -> Source:
        """Read some segments of a spool whose index is known."""
        source = cls()
        for name in names:
            source._take(folder / name, salvage(folder / name, index.nonce), index)
        return source

    @staticmethod
    def sealed_runs(paths: Iterable[Path]) -> dict[str, list[Run]]:
        """Return by engine what sealed files hold; one that cannot be read holds nothing."""
        found: dict[str, list[Run]] = {}
        for path in paths:
            with contextlib.suppress(TraceError):
                for batch in SealedFile(path).batches:
                    runs = found.setdefault(batch.meta.engine_id, [])
                    if not batch.meta.engine_id or touched(runs, *(batch.meta.seqs or ((0, 0),))[0]):
                        continue  # every batch of an engine tells the same
                    runs += [Run(first, last, {}, batch.meta.produced, batch.meta.lost, batch.meta.last)
                             for first, last in batch.meta.seqs]  # fmt: skip
        return found

    @classmethod
    def segments(cls, paths: Iterable[Path]) -> Source:
        """Read hot segments without the spool they belong to."""
        source = cls()
        for path in paths:
            source.live = source.live or is_live(path.parent)
            source._take(path, scan(path))
        return source

    @classmethod
    def spool(cls, folder: Path) -> Source:
        """Read a spool: its segments are scanned and verified here and now, its damage is noted."""
        for _ in range(_ATTEMPTS):
            source = cls()
            source.live = is_live(folder)  # first: a writer that ends meanwhile leaves whole segments
            index = source._read_index(folder)
            for path in segment_paths(folder):
                if index is None or path.name not in index.superseded:
                    source._take(path, salvage(path, index.nonce if index else ""), index)
            if not source._moved(folder, index):
                break
        return source

    def _take(self, path: Path, found: Iterable[HotBatch | Damage], index: Index | None = None) -> None:
        self.files.append(path)
        for item in found:
            if isinstance(item, Damage):
                self.damage.append(item if index is None else item.known())
                if item.what:
                    self.files.remove(path)
            else:
                self.batches.append(item)
                self.schema_version = item.schema_version

    def _read_index(self, folder: Path) -> Index | None:
        path = folder / INDEX_NAME
        try:
            index = read_index(folder)
        except TraceCorruptError:
            self.damage.append(Damage(path, 0, 0, False, "is damaged, so it is not known what was there"))
            return None
        if index is not None:
            self.index = index
            self.engines, self.losses, self.notes = index.engines, index.losses, list(index.incidents)
            if index.blind:
                self.damage.append(Damage(path, 0, 0, False, "was damaged, and so were segments"))
        return index

    def _moved(self, folder: Path, index: Index | None) -> bool:
        """Whether the writer put what we were reading elsewhere meanwhile."""
        if index is None:
            if any(isinstance(batch, HotBatch) for batch in self.batches) and not self.damage:
                self.damage.append(Damage(folder / INDEX_NAME, 0, 0, False, "is missing"))
            return self.live
        # what is missing of them is a loss of the engines that the index knows
        files = [(name, 0) for name in index.growing] + list(index.whole.items())
        return self.live and any(_size(folder / name) < size for name, size in files) and read_index(folder) != index


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return -1


def part_paths(folder: Path) -> list[Path]:
    """Return the parts of a spool that lie in its folder, in the order they were made."""
    return sorted(folder.glob("part-*.arrow"))


def sources_of(folder: Path, fetch: Callable[[str], Path]) -> list[Source]:
    """Return all of a spool: its segments, then its parts, so that what is sealed meanwhile is seen twice, not never.

    Args:
        fetch: returns a copy of an object, for parts that lie in an archive alone.

    Raises:
        TraceError: the whole spool was sealed into another file meanwhile, or removed.
    """
    try:
        spool = Source.spool(folder)
    except FileNotFoundError:
        raise TraceError(_GONE.format(folder)) from None
    sources = [spool]
    parts = {} if spool.index is None else spool.index.parts
    for name in sorted({*(path.name for path in part_paths(folder)), *parts}):
        try:
            sources.append(_part(folder, name, parts.get(name), fetch))
        except TraceError as error:
            damage = Damage(folder / name, 0, 0, False, f"cannot be read ({error})")
            spool.damage.append(damage if spool.index is None else damage.known())
    if spool.damage or not (spool.files or sources[1:]):
        _check_there(folder)
    return sources


def _part(folder: Path, name: str, part: Part | None, fetch: Callable[[str], Path]) -> Source:
    """Open a part, of which an index may tell, where it lies by now: it may leave for the archive in any moment."""
    if part is None or part.here:
        try:
            return Source.sealed(folder / name)
        except UnreadableTraceError:
            index = read_index(folder)
            part = None if index is None else index.parts.get(name)
            if part is None or part.here:
                raise
    return Source.sealed(fetch(part.archived), part.archived)


def _check_there(folder: Path) -> None:
    """Make sure that a spool of which something is missing was not sealed or removed while it was being read.

    Raises:
        TraceError: it was.
    """
    try:
        index = read_index(folder)
    except TraceCorruptError:
        return
    if index is not None and index.seals is not None and index.seals.files and not index.engines:
        raise TraceError(f"this spool was sealed meanwhile, read {index.seals.out}: {folder}")
    if index is None and not folder.exists():
        raise TraceError(_GONE.format(folder))


def is_file_format(path: Path) -> bool:
    """Say whether a file is of the Arrow file format (or the stream format, if not).

    Raises:
        UnreadableTraceError: it cannot be read.
        NotArrowError: it is neither.
    """
    try:
        head = OpenFile(path).read(0, len(MAGIC))
    except OSError as error:
        raise UnreadableTraceError(path, error) from None
    if head and (MAGIC.startswith(head) or head.startswith(MAGIC)):
        return True
    if head and head[:4] == b"\xff\xff\xff\xff"[: len(head)]:
        return False
    raise NotArrowError(path)
