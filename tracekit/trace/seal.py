"""Turn a spool into one sealed, request-major, well compressed trace."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from tracekit.tables import TABLES
from tracekit.trace.batch import BatchMeta, batch_of_structs, request_major, rows_of
from tracekit.trace.gather import Array, Rows, Weights, slots_of
from tracekit.trace.ledger import UNKNOWN_ENGINE, Loss, loss_table, settled
from tracekit.trace.output import check_output, new_file
from tracekit.trace.proof import to_metadata
from tracekit.trace.reader import Trace, load, open_trace
from tracekit.trace.runs import Run
from tracekit.trace.schema import sealed_schema
from tracekit.trace.sources import Stored
from tracekit.trace.tally import Tally, free_number

SEALED_LEVEL = 9
BATCH_ROWS = 1 << 20
PROMPT_IDS = 8  # of a prompt fill as much memory as one row of tokens

_BY_REQUEST = [name for name, columns in TABLES.items() if "request" in columns]
_OTHER = [name for name in TABLES if name not in _BY_REQUEST]


@dataclass(frozen=True)
class SealReport:
    """What was written."""

    path: Path
    bytes: int
    batches: int
    engines: int
    rows: dict[str, int]  # by table
    losses: list[Loss]
    notes: list[str]  # on engines that never said goodbye, and lost nothing by it
    files: list[Path]  # that it was made of

    @property
    def complete(self) -> bool:
        """Whether everything that the engines produced is in the file."""
        return not self.losses


def seal(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    extra_losses: Iterable[Mapping[str, Any]] = (),
    idle: Mapping[str, int] = MappingProxyType({}),
    *,
    batch_rows: int = BATCH_ROWS,
    name: str = "",
) -> SealReport:
    """Write the trace at `source` (a spool, as a rule) into the new file `out`.

    It holds about `batch_rows` tokens in memory at a time, besides the steps of one engine.

    Args:
        source: Anything that `open_trace` takes; it stays as it is.
        out: Appears whole and synced, or not at all.
        extra_losses: What recorders know they could not deliver: dicts with engine_id, from_seq, to_seq, reason, rows.
        idle: By engine id, the batch up to which an engine that is idle has told everything.
        batch_rows: Tokens in a batch; one request is never split.
        name: of this sealing, kept in the file.

    Raises:
        OutputError: `out` exists, or cannot be written.
        TraceError: `source` cannot be read.
    """
    check_output(out)
    return seal_trace(open_trace(source), out, extra_losses, idle, batch_rows=batch_rows, name=name)


def seal_trace(
    trace: Trace,
    out: str | os.PathLike[str],
    extra_losses: Iterable[Mapping[str, Any]] = (),
    idle: Mapping[str, int] = MappingProxyType({}),
    *,
    batch_rows: int = BATCH_ROWS,
    name: str = "",
) -> SealReport:
    """Do the same for a trace that is open; it is changed by it.

    Raises:
        OutputError: `out` exists, or cannot be written.
        TraceCorruptError: a batch is not what was written.
    """
    trace.live = False  # who seals it says that it is over
    for tally in trace.tallies.values():
        if tally.engine_id in idle:
            tally.rest(idle[tally.engine_id])
    losses = _all_losses(trace, list(extra_losses))
    told = trace.notes()
    size, total, rows = _write(trace, Path(out), losses, batch_rows, name)
    num_engines = sum(bool(tally.engine_id) for tally in trace.tallies.values())
    return SealReport(Path(out), size, total, num_engines, rows, losses, told, trace.files)


def seal_part(trace: Trace, out: Path, *, batch_rows: int = BATCH_ROWS) -> None:
    """Write a part of a trace, which does not say what is missing in front of, within or behind it.

    Raises:
        OutputError: `out` exists, or cannot be written.
    """
    _write(trace, out, trace.reported(), batch_rows, "")


def _write(trace: Trace, out: Path, losses: list[Loss], batch_rows: int, name: str) -> tuple[int, int, dict[str, int]]:
    """Return the size, the number of batches, and the rows by table."""
    plans = [_plan(trace, tally, batch_rows) for tally in trace.tallies.values()]
    total = sum(len(plan.slots) for plan in plans)
    rows = dict.fromkeys(TABLES, 0)
    with new_file(out) as file:
        options = pa.ipc.IpcWriteOptions(compression=pa.Codec("zstd", SEALED_LEVEL))
        with pa.ipc.new_file(file, sealed_schema(name), options=options) as writer:
            number = 0
            for plan in plans:
                for batch in plan.batches(plan.own(losses)):
                    number += 1
                    meta = replace(plan.meta, seq=number, of=total, notes=tuple(trace.incidents))
                    writer.write_batch(batch, custom_metadata=to_metadata(batch, meta))
                    for table in TABLES:
                        rows[table] += len(rows_of(batch, table))
        file.flush()
        return file.tell(), total, rows


def _all_losses(trace: Trace, extra: list[Mapping[str, Any]]) -> list[Loss]:
    """Return every loss with the number of a (perhaps new) engine, each once; the extra ones come before the found."""
    numbers = {tally.engine_id: tally.engine for tally in trace.tallies.values()}
    for item in extra:
        number = numbers.setdefault(item["engine_id"], free_number(trace.tallies))
        if number not in trace.tallies:
            trace.tallies[number] = Tally(number, item["engine_id"])
        trace.extra.append(Loss.aside(item, number))
    trace.damage = [damage for damage in trace.damage if not damage.told]
    reported = trace.reported()
    losses = settled(reported, trace.found(reported))
    if any(loss.engine is None for loss in losses):
        trace.tallies[UNKNOWN_ENGINE] = Tally(UNKNOWN_ENGINE, "")
    return losses


@dataclass
class _Plan:
    """How the rows of one engine fall into sealed batches."""

    tally: Tally
    stored: list[tuple[Stored, int]]
    spans: list[tuple[int, int]]  # first and last request by stored batch; (1, 0) where it has none
    slots: list[tuple[int, int]]  # first and last request by sealed batch
    side: dict[str, list[pa.StructArray]]  # the rows of the tables that know no request, as they came
    kept: list[pa.RecordBatch]  # the stored batches, where they all fit in memory; else empty

    @property
    def meta(self) -> BatchMeta:
        tally = self.tally
        return BatchMeta(
            tally.engine,
            tally.engine_id,
            0,
            dict(tally.produced),
            dict(tally.lost),
            tally.last,
            tally.idle,
            seqs=tuple((run.first, run.last) for run in tally.runs),
            ends=() if tally.settled else tuple(_counters(run) for run in tally.runs),
            end=tally.end_seq,
        )

    def own(self, losses: Iterable[Loss]) -> list[Loss]:
        """Return the losses of this engine."""
        number = None if self.tally.engine == UNKNOWN_ENGINE else self.tally.engine
        return [loss for loss in losses if loss.engine == number]

    def batches(self, losses: list[Loss]) -> Iterator[pa.RecordBatch]:
        """Yield the sealed batches; the first has the tables that know no request."""
        side = {name: pa.concat_arrays(chunks) for name, chunks in self.side.items() if chunks}
        if losses:
            side["losses"] = loss_table(losses).to_struct_array().combine_chunks()
        for first, last in self.slots:
            structs, side = dict(side), {}
            parts: dict[str, list[pa.StructArray]] = {name: [] for name in _BY_REQUEST}
            for index, (low, high) in enumerate(self.spans):
                if low > last or high < first or low > high:
                    continue
                batch = self.kept[index] if self.kept else load(*self.stored[index], _BY_REQUEST)
                for name in _BY_REQUEST:
                    parts[name].append(_within(rows_of(batch, name), first, last))
            for name, chunks in parts.items():
                if chunks:
                    structs[name] = request_major(name, pa.concat_arrays(chunks))
            yield batch_of_structs(structs)


def _plan(trace: Trace, tally: Tally, batch_rows: int) -> _Plan:
    stored = [pair for pair in trace.stored if pair[1] == tally.engine]
    spans = []
    weights = Weights()
    side = {name: Rows() for name in _OTHER if name != "losses"}
    kept: list[pa.RecordBatch] = []
    for item, number in stored:
        batch = load(item, number)
        for name, rows in side.items():
            rows.add(rows_of(batch, name))
        low, high = 1, 0
        for name in _BY_REQUEST:
            requests = _requests_of(batch, name)
            if len(requests):
                first, last = int(requests.min()), int(requests.max())
                low, high = (first, last) if low > high else (min(low, first), max(high, last))
        spans.append((low, high))
        weights.add(_requests_of(batch, "tokens"))
        weights.add(_requests_of(batch, "prompt_logprobs"))
        prompts = rows_of(batch, "requests").field("prompt_token_ids")
        weights.add(_requests_of(batch, "requests"), prompts.value_lengths().to_numpy() // PROMPT_IDS)
        if weights.total <= batch_rows:
            kept.append(batch)
    if len(kept) < len(stored):
        kept = []
    chunks = {name: rows.take() for name, rows in side.items()}
    return _Plan(tally, stored, spans, slots_of(*weights.by_request(), batch_rows), chunks, kept)


def _counters(run: Run) -> dict[str, Any]:
    return {"before": run.before, "produced": run.produced, "lost": run.lost}


def _requests_of(batch: pa.RecordBatch, table: str) -> Array:
    requests: Array = rows_of(batch, table).field("request").to_numpy()
    return requests


def _within(rows: pa.StructArray, first: int, last: int) -> pa.StructArray:
    # not pyarrow.compute: handing it a Python number costs a look for pandas, a millisecond where there is none
    requests = rows.field("request").to_numpy()
    inside = (requests >= first) & (requests <= last)
    return rows if inside.all() else rows.filter(pa.array(inside))
