"""Where the batches of a trace lie: a sealed file, or the hot segments of a spool."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from tracekit.errors import NotArrowError, UnreadableTraceError
from tracekit.tables import SCHEMA_VERSION
from tracekit.trace.batch import BatchMeta
from tracekit.trace.ledger import Tally
from tracekit.trace.sealed import MAGIC, SealedFile
from tracekit.trace.segments import Damage, is_live, scan


class Stored(Protocol):
    """A batch that lies on the disk, verified when it is loaded."""

    @property
    def meta(self) -> BatchMeta:
        """What the batch says of itself."""

    def load(self, tables: Sequence[str] | None = None) -> pa.RecordBatch:
        """Read and verify the tables named, or all."""


class Source:
    """A sealed file, or the hot segments of one spool."""

    schema_version: int = SCHEMA_VERSION
    live: bool = False
    is_sealed: bool = False

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.batches: list[Stored] = []
        self.tallies: list[Tally] = []
        self.damage: list[Damage] = []

    @classmethod
    def sealed(cls, path: Path, name: str | None = None) -> Source:
        """Open a sealed file, which errors call `name`."""
        source, file = cls(), SealedFile(path, name)
        source.schema_version, source.is_sealed = file.schema_version, True
        source.files = [path]
        source.batches = list(file.batches)
        source.tallies = [Tally.of_sealed(metas) for metas in _by_engine(batch.meta for batch in file.batches)]
        return source

    @classmethod
    def spool(cls, folder: Path, segments: Iterable[Path]) -> Source:
        """Read hot segments, which are scanned and verified here and now."""
        source = cls()
        source.live = is_live(folder)  # first: a writer that ends meanwhile leaves whole segments
        seen: set[tuple[str, int]] = set()
        versions: set[int] = set()
        for path in segments:
            source.files.append(path)
            for found in scan(path):
                if isinstance(found, Damage):
                    source.damage.append(found)
                elif (key := (found.meta.engine_id, found.meta.seq)) not in seen:
                    seen.add(key)
                    source.batches.append(found)
                    versions.add(found.schema_version)
        source.schema_version = max(versions, default=SCHEMA_VERSION)
        source.tallies = [Tally.of_hot(metas) for metas in _by_engine(batch.meta for batch in source.batches)]
        return source


def is_file_format(path: Path) -> bool:
    """Say whether a file is of the Arrow file format (or the stream format, if not).

    Raises:
        UnreadableTraceError: it cannot be read.
        NotArrowError: it is neither.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(len(MAGIC))
    except OSError as error:
        raise UnreadableTraceError(path, error) from None
    if head and (MAGIC.startswith(head) or head.startswith(MAGIC)):
        return True
    if head and head[:4] == b"\xff\xff\xff\xff"[: len(head)]:
        return False
    raise NotArrowError(path)


def _by_engine(metas: Iterable[BatchMeta]) -> Iterable[list[BatchMeta]]:
    groups: dict[str, list[BatchMeta]] = {}
    for meta in metas:
        groups.setdefault(meta.engine_id, []).append(meta)
    return groups.values()
