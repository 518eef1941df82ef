"""Read a trace in any of its forms: a sealed file, here or in an object store, a spool folder, a glob, a live one."""

from __future__ import annotations

import copy
import glob
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tracekit.errors import NoSuchEngineError, NotATraceError, TraceError
from tracekit.objects.address import is_url
from tracekit.objects.fetch import local_file, quiet
from tracekit.tables import SCHEMA_VERSION, TABLES
from tracekit.trace.attached import attached
from tracekit.trace.batch import batch_of_structs, rows_of, sort_order
from tracekit.trace.combine import combine
from tracekit.trace.hold import LOCK_NAME
from tracekit.trace.index import INDEX_NAME
from tracekit.trace.ledger import CORRUPT, UNKNOWN_ENGINE, Loss, loss_table, notes, so_far, told, unreported
from tracekit.trace.redacted import redacted
from tracekit.trace.schema import row_schema
from tracekit.trace.segments import segment_paths
from tracekit.trace.sources import Source, Stored, is_file_format, part_paths, sources_of

ORDER = {
    "engines": ("engine",),
    "requests": ("engine", "request"),
    "joined": ("engine", "request"),
    "tokens": ("engine", "request", "position"),
    "steps": ("engine", "engine_step"),
    "scheduled": ("engine", "engine_step", "request"),
    "topk": ("engine", "request", "position", "rank"),
    "prompt_logprobs": ("engine", "request", "position"),
    "prompt_topk": ("engine", "request", "position", "rank"),
    "cache": ("engine", "engine_step", "request", "kv_group", "block"),
    "workers": ("engine", "rank"),
    "fingerprints": ("engine", "weight_version", "rank"),
    "finishes": ("engine", "request"),
    "weights": ("engine", "weight_version"),
    "control": ("engine", "engine_step"),
    "annotations": ("engine", "wall_ns"),
    "shed": ("engine", "request"),
    "stalls": ("engine", "begin_ns"),
    "losses": ("engine", "from_seq"),
}


class Trace:
    """A recorded run; made by `open_trace`. It is a snapshot: what a writer appends later is not in it."""

    def __init__(self, path: str, sources: Sequence[Source]) -> None:
        self.path = path
        self.schema_version = max((source.schema_version for source in sources), default=SCHEMA_VERSION)
        self.files = [path for source in sources for path in source.files]
        self.form = "sealed" if all(source.is_sealed for source in sources) else "spool"
        self.live = any(source.live for source in sources)  # somebody is still writing it
        # each batch and the number its engine has in this trace; what is told of each engine
        self.stored, self.tallies = combine(path, sources)
        numbers = {tally.engine_id: number for number, tally in self.tallies.items()}
        self.extra: list[Loss] = []  # reported aside from the batches, by the engines' ids
        for told_aside in (loss for source in sources for loss in source.losses):
            self.extra.append(Loss.aside(told_aside, numbers[told_aside["engine_id"]]))
        self.damage = [damage for source in sources for damage in source.damage]
        self._known: list[Loss] | None = None
        self.incidents = [text for source in sources for text in source.notes]

    def only(self, engine: int) -> Trace:
        """Return the trace as if it held one engine alone, with its trainers, and losses of unknown engines.

        Raises:
            NoSuchEngineError: it is not in the trace.
        """
        trace = copy.copy(self)
        trace.keep([engine])
        return trace

    def keep(self, engines: Collection[int]) -> None:
        """Leave out all engines but these, and what is known of them.

        Raises:
            NoSuchEngineError: one is not in the trace.
        """
        for engine in engines:
            if engine not in self.numbers:
                raise NoSuchEngineError(engine, self.numbers)
        self.tallies = {n: tally for n, tally in self.tallies.items() if n in engines or tally.is_trainer}
        self.stored = [pair for pair in self.stored if pair[1] == UNKNOWN_ENGINE or pair[1] in self.tallies]
        self.extra = [loss for loss in self.extra if loss.engine is None or loss.engine in self.tallies]

    @property
    def numbers(self) -> list[int]:
        """The engines' numbers, ascending; trainers, which only annotate, are left out."""
        return [number for number, tally in self.tallies.items() if not tally.is_trainer]

    def leave_out(self, number: int, rows: Mapping[str, int]) -> None:
        """Take rows that are left out on purpose out of an engine's counters; what is lost is what was until now."""
        if self._known is None:
            self._known = self.all_losses()
        self.tallies[number].leave_out(rows)

    def rows(self, name: str) -> int:
        """Return how many rows of a table the trace holds, without reading them."""
        return sum(stored.meta.rows.get(name, 0) for stored, _ in self.stored)

    def table(self, name: str) -> pa.Table:
        """Return one table with its flat columns as in `tracekit.tables`, in the order of `ORDER`.

        `losses` has the losses found by counters and gaps as well as those reported.

        Raises:
            TraceCorruptError: a batch is not what was written; no row is returned.
            KeyError: there is no such table.
        """
        if name == "losses":
            return loss_table(self.all_losses())
        chunks = list(self.chunks(name))
        table = pa.Table.from_batches(chunks, schema=row_schema(name))
        order = sort_order([table.column(key).to_numpy() for key in ORDER[name]])
        return table if order is None else table.combine_chunks().take(pa.array(order))

    def chunks(self, name: str) -> Iterator[pa.RecordBatch]:
        """Yield the stored rows of one table, verified, a piece at a time, in no order across pieces."""
        for stored, number in self.stored:
            if name in stored.meta.rows:
                yield pa.RecordBatch.from_struct_array(rows_of(load(stored, number, [name]), name))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield every batch, verified, one row each (see `schema.arrow_schema`)."""
        for stored, number in self.stored:
            yield load(stored, number)

    def engines(self) -> list[dict[str, Any]]:
        """Return the rows of the `engines` table as dicts; an engine whose row did not arrive has its id alone."""
        rows = {row["engine"]: row for row in self.table("engines").to_pylist()}
        return [
            rows.get(number, {"engine": number, "engine_id": self.tallies[number].engine_id})
            for number in sorted(self.numbers)
        ]

    def losses(self) -> list[dict[str, Any]]:
        """Return everything that is known not to be in the trace, as `Loss.to_dict` has it.

        In a trace that is still being written, an engine that is still running is not a loss.
        """
        return [loss.to_dict() for loss in self.all_losses()]

    def all_losses(self) -> list[Loss]:
        """Return the same as `losses`, as `Loss` objects: those reported, then those found."""
        reported = self.reported()
        return reported + self.found(reported)

    def reported(self) -> list[Loss]:
        """Return what the recorders and the daemon said was lost, and is."""
        if self._known is not None:
            return self._known
        losses: list[tuple[Loss, Sequence[tuple[int, int]]]] = []
        for stored, number in self.stored:
            meta = stored.meta
            if "losses" in meta.rows:
                own = meta.seqs if meta.of else ((meta.first, meta.seq),)
                rows = rows_of(load(stored, number, ["losses"]), "losses").to_pylist()
                losses += [(Loss.from_row(row), own) for row in rows]
        return told([*losses, *((loss, ()) for loss in self.extra)], self.tallies)

    def found(self, reported: Sequence[Loss]) -> list[Loss]:
        """Return what counters, numbers and damaged bytes prove to be lost, beside what was `reported`."""
        if self._known is not None:
            return []
        found = [loss for tally in self.tallies.values() for loss in unreported(tally, reported)]
        if self.live:
            found = so_far(found)
        for damage in self.damage:
            if not (self.live and damage.at_end):
                found.append(Loss(None, 0, 0, f"{CORRUPT}: {damage}", {}))
        return found

    def notes(self) -> list[str]:
        """Return a sentence for each engine that never said goodbye, and all else that happened and lost nothing."""
        told = attached(self.table("control").to_pylist()) if self.rows("control") else []
        told += redacted(self.engines())
        return notes(self.tallies.values(), self.all_losses()) + told + self.incidents

    @property
    def complete(self) -> bool:
        """Whether everything that the engines produced so far is here."""
        return not self.all_losses()


def open_trace(path: str | os.PathLike[str], *, say: Callable[[str], None] = quiet) -> Trace:
    """Open a sealed file, a spool folder, a hot segment, or a glob over files.

    Args:
        path: of it, or the `s3://` URL of a sealed file, which is copied into the cache folder.
        say: is handed a line of text now and then, where the copying takes long.

    Raises:
        TraceError: there is nothing there, or it cannot be read.
        NotATraceError, TraceTruncatedError, TraceCorruptError, SchemaTooNewError
        StoreError, CacheError, UsageError: the file behind a URL cannot be had; the URL is not one.
    """
    text = os.fspath(path)
    return Trace(text, _sources(text, say))


def open_traces(paths: Iterable[str | os.PathLike[str]], *, say: Callable[[str], None] = quiet) -> Trace:
    """Open several as one; an engine that is in more than one of them is one engine.

    Raises:
        As `open_trace`; and a TraceError where two of them hold the same batches.
    """
    texts = [os.fspath(path) for path in paths]
    return Trace(", ".join(texts), [source for text in texts for source in _sources(text, say)])


def _sources(text: str, say: Callable[[str], None]) -> list[Source]:
    if is_url(text):
        return [Source.sealed(local_file(text, say), text)]
    paths = [Path(text)] if os.path.lexists(text) else [Path(match) for match in sorted(glob.glob(text))]
    if not paths:
        raise TraceError(f"there is no such trace: {text}")
    sources: list[Source] = []
    segments: list[Path] = []
    for item in paths:
        if item.is_dir():
            if (
                not segment_paths(item)
                and not part_paths(item)
                and not any((item / name).exists() for name in (LOCK_NAME, INDEX_NAME))
            ):
                raise NotATraceError(f"this folder is not the spool of a trace: {item}")
            sources += sources_of(item, lambda url: local_file(url, say))
        # links are followed where their user names one, and nowhere inside a spool
        elif is_file_format(real := Path(os.path.realpath(item))):
            sources.append(Source.sealed(real, str(item)))
        else:
            segments.append(item)
    if segments:
        sources.append(Source.segments(segments))
    return sources


def load(stored: Stored, number: int, tables: Sequence[str] | None = None) -> pa.RecordBatch:
    """Load a batch of `Trace.stored`, with its engine numbered as in the trace."""
    batch = stored.load(tables)
    if number == stored.meta.engine:
        return batch
    return batch_of_structs({name: _renumbered(rows_of(batch, name), number) for name in batch.schema.names})


def _renumbered(rows: pa.StructArray, number: int) -> pa.StructArray:
    arrays = [pa.array(np.full(len(rows), number, np.uint32)), *rows.flatten()[1:]]
    return pa.StructArray.from_arrays(arrays, fields=list(rows.type))


assert ORDER.keys() == TABLES.keys()
