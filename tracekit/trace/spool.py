"""The spool: hot segments that a crash cannot spoil, one `write(2)` a batch, synced when the caller says so."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from tracekit.errors import OutputError
from tracekit.trace.batch import BatchMeta
from tracekit.trace.durable import cut, sync_folder
from tracekit.trace.hold import Hold
from tracekit.trace.hot import HotSegment, Work
from tracekit.trace.index import INDEX_NAME, Part, Seals, Standing, is_told
from tracekit.trace.parts import make_part
from tracekit.trace.proof import to_metadata
from tracekit.trace.recovery import look, standings
from tracekit.trace.reserve import Reserve
from tracekit.trace.segments import segment_name
from tracekit.trace.sources import part_paths

SEGMENT_BYTES = 64 << 20
SEGMENT_SECS = 300.0
CHECKPOINT_BATCHES = 256  # after so many the index is written anew: a restart decodes what came after it


@dataclass(frozen=True)
class ResumePoint:
    """Where an engine's recording stands on the disk."""

    engine: int
    seq: int  # the end of what is there without a gap
    produced: dict[str, int]
    lost: dict[str, int]
    last: bool


class SpoolWriter:
    """Appends batches to the hot segments of a folder; safe to call from several threads.

    Unsynced messages are kept in memory until `sync` succeeds: when a sync fails, the kernel may have dropped pages
    and called them clean, so the segment is abandoned, never synced again, and its unsynced messages go to a new one.
    One that holds nothing else is removed. The reader drops the copy that it has seen.

    Attributes:
        failed_syncs: how often the disk refused to sync, whether or not the copy went through.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        segment_bytes: int = SEGMENT_BYTES,
        segment_secs: float = SEGMENT_SECS,
        say: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Take the folder, creating it (0700), and make durable what another writer left in it.

        Args:
            segment_bytes, segment_secs: when a segment is ended and the next begun.
            say: is handed a line when something happens that a person should know of.

        Raises:
            OutputError: another writer holds it, or it cannot be written.
            SchemaTooNewError: a newer tracekit wrote what is in it.
        """
        self.folder = Path(folder)
        self.failed_syncs = 0
        self._segment_bytes, self._segment_secs, self._say = segment_bytes, segment_secs, say
        self._lock = threading.Lock()
        self._sync_lock = threading.Lock()
        self._reserve = Reserve(self.folder, self._lock)
        self._segments: list[HotSegment] = []  # not yet synced, and the one being written at the end
        self._orphans: list[bytes] = []  # messages of abandoned segments, still to be written again
        self._standings: dict[str, Standing] = {}  # as appended, without a gap
        self._since_index = 0  # batches
        self._failing = False
        self._index_is_old = True
        self._closed = False
        try:
            self._hold = Hold(self.folder)
        except OSError as error:
            raise OutputError(f"cannot write the spool folder {self.folder}: {error.strerror}") from None
        try:
            self._recover()
        except OSError as error:
            self._let_go()
            raise OutputError(f"cannot write the spool folder {self.folder}: {error.strerror}") from None
        except BaseException:
            self._let_go()
            raise
        self._resume = {name: ResumePoint(**vars(standing)) for name, standing in self._standings.items()}

    def resume(self) -> dict[str, ResumePoint]:
        """Return, by engine id, what was on the disk when the spool was opened."""
        return dict(self._resume)

    def append(self, batch: pa.RecordBatch, meta: BatchMeta) -> int:
        """Write one batch, not yet durable, and return its size in bytes.

        Raises:
            OutputError: the disk refused it (it is full, say); nothing of it stays, and it may be appended again.
        """
        metadata = to_metadata(batch, replace(meta, nonce=self._index.nonce))
        with self._lock:
            try:
                self._write_orphans()
                size = self._write(lambda segment: segment.encode(batch, metadata))
            except OSError as error:
                raise OutputError(f"cannot append to the spool {self.folder}: {error.strerror}") from None
            self._since_index += 1
            # an engine must be in the index before anything of it is confirmed
            if meta.engine_id not in self._standings or self._since_index >= CHECKPOINT_BATCHES:
                self._index_is_old = True
            self._standings[meta.engine_id] = Standing(meta.engine, meta.seq, meta.produced, meta.lost, meta.last)
            return size

    def sync(self) -> None:
        """Return once everything appended before this call is on the disk.

        Raises:
            OutputError: the disk refused, and refused the copy as well; call again later, nothing is forgotten.
        """
        with self._sync_lock:
            for attempt in range(2):
                try:
                    self._sync_once()
                    self._failing = False
                    return
                except OSError as error:
                    text = f"cannot sync the spool {self.folder}: {error.strerror}"
                    if attempt:
                        raise OutputError(text) from None
                    if not self._failing:
                        self._say(f"{text}; what was not confirmed is written anew, into another file")
                    self._failing = True

    def add_losses(self, losses: Iterable[Mapping[str, Any]]) -> None:
        """Keep what recorders know they could not deliver: engine_id, from_seq, to_seq, reason, rows.

        What nobody can have lost is said, and left out.

        Raises:
            OutputError: the disk refused.
        """
        good: list[dict[str, Any]] = []
        for loss in losses:
            if is_told(loss):
                good.append(dict(loss))
            else:
                self._say(f"a recorder's note is left out, it says what nobody can have lost: {loss!a:.200}")
        with self._lock:
            self._index.losses += good
            self._index_is_old = True
        self.sync()

    def close(self) -> None:
        """End the open segment, sync and let go of the folder; a second call does nothing."""
        try:
            self.end()
        finally:
            self._reserve.remove()
            self._let_go()

    def end(self) -> None:
        """End the open segment and sync, but keep the folder: nobody else writes it until `close`."""
        if self._closed:
            return
        self._closed = True
        with self._lock:
            for segment in self._segments:
                segment.end()
        self._index_is_old = True
        self.sync()

    @property
    def seals(self) -> Seals | None:
        """The trace that was being made of this spool when its last writer ended, or that is being made now."""
        return self._index.seals

    def announce(self, out: Path, name: str) -> None:
        """Note that the spool, which was ended, is being sealed: who comes after a crash finds out how far that got.

        Raises:
            OutputError: the disk refused.
        """
        self._index.seals = Seals(str(out.absolute()), name, [*self._index.whole, *self._index.parts])
        self._rewrite()

    def forget(self, names: Iterable[str]) -> None:
        """Remove segments that are in a sealed trace, and nothing else; that they are stays known until `remove`.

        Raises:
            OutputError: the disk refused.
        """
        for name in names:
            self._index.whole.pop(name, None)
            self._index.parts.pop(name, None)
            self._index.superseded.append(name)
        self._index.engines, self._index.losses, self._index.incidents = {}, [], []
        self._standings, self._resume = {}, {}
        if self._index.whole or self._index.parts:
            self._index.seals = None  # there is more, to go on with
        self._rewrite()

    def roll(self) -> None:
        """End the open segment where its time is over, though nothing comes any more.

        Raises:
            OutputError: the disk refused.
        """
        with self._lock:
            segment = self._segments[-1] if self._segments else None
            if segment is None or segment.ended or not self._is_old(segment) or segment.size <= len(segment.head):
                return
            segment.end()
            self._index_is_old = True
        self.sync()

    def whole(self) -> dict[str, int]:
        """Return the segments that can be made a part, and their sizes."""
        with self._sync_lock:
            return dict(self._index.whole)

    def parts(self) -> dict[str, Part]:
        """Return the parts, the oldest first."""
        with self._sync_lock:
            return {name: replace(part) for name, part in sorted(self._index.parts.items())}

    def make_part(self, names: Iterable[str]) -> Path | None:
        """Seal segments while others are written; None where they must wait, see `parts.make_part`.

        Raises:
            OutputError: the disk refused; the segments stay.
        """
        with self._lock:
            standings = dict(self._standings)
        made = make_part(self.folder, names, self._index, standings)
        if made is None:
            return None
        with self._sync_lock:
            for text in made.damage:
                self._index.incident(f"{text}; what it held is counted as lost, unless it came again")
            self._adopt_parts()
            for name in made.segments:
                self._index.whole.pop(name, None)
                self._index.growing.pop(name, None)
                self._index.superseded.append(name)
            self._rewrite()
        return made.path

    def change_part(self, name: str, *, archived: str | None = None, here: bool = True) -> None:
        """Note where a part lies; one that is not to be here is removed.

        Raises:
            OutputError: the disk refused.
        """
        with self._sync_lock:
            part = self._index.parts[name]
            part.archived, part.here = part.archived if archived is None else archived, here
            if not here:
                assert part.archived, "a part that is nowhere else is never removed"
                self._index.superseded.append(name)
            self._rewrite()

    @property
    def nonce(self) -> str:
        """What tells this spool from others."""
        return self._index.nonce

    def remove(self) -> None:
        """Remove the folder, where nothing is left in it, and let go of it."""
        self._closed = True
        self._reserve.remove()
        self._hold.remove(INDEX_NAME)

    def _rewrite(self) -> None:
        try:
            self._reserve.write(self._index)
            self._index.drop(self.folder)
        except OSError as error:
            raise OutputError(f"cannot write the spool folder {self.folder}: {error.strerror}") from None

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _let_go(self) -> None:
        for segment in self._segments:
            segment.close()
        self._segments.clear()
        self._hold.release()

    def _recover(self) -> None:
        """Copy what may be in the page cache alone, sync it, and only then forget where it was."""
        for path in self.folder.glob(".part-*.tmp"):
            path.unlink()  # of one who was killed while making it
        found = look(self.folder)
        self._index, self._next_number = found.index, found.next_number
        self._standings = standings(found)
        index = self._index
        index.whole = {**found.whole, **index.whole}
        index.superseded += [path.name for path in found.superseded]
        index.growing = {}
        self._adopt_parts()
        try:
            for batch in found.tail:
                message = batch.message()
                self._write(lambda _: message)  # noqa: B023 - called at once
                self._segments[-1].unsynced.clear()  # it lies in the old segment, too
            self._sync_once()
        except OSError:
            for segment in self._segments:
                segment.path.unlink(missing_ok=True)
            raise
        for path, size in found.cut.items():
            cut(path, size)

    def _adopt_parts(self) -> None:
        for path in part_paths(self.folder):
            if path.name not in self._index.parts and path.name not in self._index.superseded:
                self._index.parts[path.name] = Part(path.stat().st_size, time.time_ns())

    def _write(self, encode: Callable[[HotSegment], bytes]) -> int:
        segment = self._segments[-1] if self._segments else None
        if segment is None or segment.ended or segment.size >= self._segment_bytes or self._is_old(segment):
            if segment is not None:
                segment.end()
            segment = self._begin()
        message = encode(segment)
        segment.write(message)
        segment.unsynced.append(message)
        return len(message)

    def _is_old(self, segment: HotSegment) -> bool:
        return time.monotonic() - segment.began >= self._segment_secs

    def _begin(self) -> HotSegment:
        while True:
            number, self._next_number = self._next_number, self._next_number + 1
            try:
                segment = HotSegment.create(self.folder / segment_name(number), self._index.nonce)
            except FileExistsError:
                continue  # whatever it is, it is not ours
            self._segments.append(segment)
            self._index_is_old = True
            return segment

    def _write_orphans(self) -> None:
        while self._orphans:
            message = self._orphans[0]
            self._write(lambda _: message)  # noqa: B023 - called at once
            del self._orphans[0]

    def _sync_once(self) -> None:
        with self._lock:
            self._write_orphans()
            work = [Work(segment) for segment in self._segments]
            standings = dict(self._standings)
            index_is_old, self._index_is_old = self._index_is_old, False
        try:
            for item in work:
                try:
                    item.segment.sync()
                except OSError as error:
                    with self._lock:
                        self._abandon(item.segment, error)
                    raise
            if index_is_old:
                sync_folder(self.folder)
                self._write_index(work, standings)
        except OSError:
            self._index_is_old = True
            raise
        with self._lock:
            for item in work:
                segment = item.segment
                segment.synced = item.size
                del segment.unsynced[: item.count]
                if segment.ended and not segment.unsynced:
                    self._segments.remove(segment)
                    segment.close()

    def _abandon(self, segment: HotSegment, error: OSError) -> None:
        self.failed_syncs += 1
        self._index.incident(f"the disk refused to sync {segment.path.name} ({error.strerror}), it was written anew")
        self._index_is_old = True
        self._segments.remove(segment)
        self._orphans += segment.unsynced
        with contextlib.suppress(OSError):  # the disk is ill, and nothing below depends on it
            if segment.synced:
                os.ftruncate(segment.fd, segment.synced)
                self._index.whole[segment.path.name] = segment.synced
            else:
                segment.path.unlink(missing_ok=True)  # nothing but copies of what we have
        segment.close()

    def _write_index(self, work: list[Work], standings: dict[str, Standing]) -> None:
        index = self._index
        index.engines = standings
        index.whole |= {item.segment.path.name: item.size for item in work if item.ended}
        index.growing = {item.segment.path.name: item.size for item in work if not item.ended}
        self._reserve.write(index)
        self._since_index = 0
        index.drop(self.folder)
