"""From a Batch off the wire to a record batch for the spool. Everything an engine says is checked here."""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import grpc
import numpy as np
import pyarrow as pa
from google.protobuf.message import DecodeError

from tracekit.errors import TracekitError
from tracekit.rpc import messages
from tracekit.rpc.columns import WIRE_TABLES, count_rows, unpack
from tracekit.tables import SCHEMA_VERSION
from tracekit.trace.batch import BatchMeta, Tables, to_record_batch
from tracekit.trace.ledger import GAP, Loss

MAX_LOSSES = 1000  # in one batch; a recorder coalesces them by reason
ENGINE_ID = re.compile(r"[0-9a-f]{32}")


class Refused(Exception):
    """A stream that is ended with a status and one sentence."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Received:
    """One checked batch, in the form that the spool takes."""

    tables: Tables
    rows: dict[str, int]
    losses: list[Loss]
    arrow: pa.RecordBatch
    meta: BatchMeta

    def behind(self, gap: Loss) -> Received:
        """Return it with one more loss: the gap in front of it."""
        losses = [*self.losses, gap]
        return replace(self, losses=losses, arrow=_to_arrow(self.tables, losses, self.meta.engine))


def parse(data: bytes) -> messages.Batch:
    """Return the message that the bytes off the wire are.

    Raises:
        Refused: they are not one.
    """
    try:
        return messages.Batch.FromString(data)
    except DecodeError:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "what was sent is not a tracekit.v1.Batch") from None


def check_hello(batch: messages.Batch) -> None:
    """Make sure that the first message of a stream is the hello of a recorder that we understand.

    Raises:
        Refused: it is not.
    """
    if not batch.HasField("hello") or batch.seq or batch.payload:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "the first message of a stream must be a hello")
    if batch.hello.protocol != messages.PROTOCOL:
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"it speaks protocol {messages.PROTOCOL}, the recorder {batch.hello.protocol}",
        )
    if batch.hello.schema != SCHEMA_VERSION:
        raise Refused(
            grpc.StatusCode.FAILED_PRECONDITION,
            f"it writes schema {SCHEMA_VERSION}, the recorder sends {batch.hello.schema}",
        )
    if not ENGINE_ID.fullmatch(batch.engine_id):
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "an engine_id is 32 hex digits")


def decode(batch: messages.Batch, engine: int, engine_id: str) -> Received:
    """Check one batch against its checksum and the tables.

    Raises:
        Refused: DATA_LOSS where the checksum does not match, INVALID_ARGUMENT for anything malformed.
    """
    if batch.engine_id != engine_id or not batch.seq:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, "a batch needs its engine's id and a number from 1")
    if zlib.crc32(batch.payload) != batch.crc:
        raise Refused(grpc.StatusCode.DATA_LOSS, f"batch {batch.seq} does not match its checksum")
    try:
        tables, losses = unpack(batch.payload), _losses(batch)
        meta = BatchMeta(
            engine=engine,
            engine_id=engine_id,
            seq=batch.seq,
            produced=_counts(batch.totals.produced),
            lost=_counts(batch.totals.lost),
            last=batch.last,
        )
        return Received(tables, count_rows(tables), losses, _to_arrow(tables, losses, engine), meta)
    except (TracekitError, ValueError, pa.ArrowException) as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"batch {batch.seq} is malformed: {error}") from None


def find_gap(received: Received, after_seq: int, produced: Mapping[str, int]) -> Loss | None:
    """Return the loss of the numbers between `after_seq` and this batch that nobody speaks for.

    Args:
        received: the batch behind the gap.
        after_seq: the last number that was received.
        produced: the producer's counters as of `after_seq`.
    """
    first, last = after_seq + 1, received.meta.seq - 1
    for loss in sorted(received.losses, key=lambda loss: loss.from_seq):
        if loss.from_seq <= first:
            first = max(first, loss.to_seq + 1)
    for loss in sorted(received.losses, key=lambda loss: -loss.to_seq):
        if loss.to_seq >= last:
            last = min(last, loss.from_seq - 1)
    if first > last:
        return None
    rows = Counter(received.meta.produced)
    for other in (produced, received.rows, *(loss.rows for loss in received.losses)):
        rows.subtract(other)
    return Loss(None, first, last, GAP, dict(+rows))


def _to_arrow(tables: Tables, losses: list[Loss], engine: int) -> pa.RecordBatch:
    return to_record_batch({**tables, **_loss_rows(losses)} if losses else tables, engine)


def _losses(batch: messages.Batch) -> list[Loss]:
    if len(batch.losses) > MAX_LOSSES:
        raise TracekitError(f"it reports more than {MAX_LOSSES} losses")
    if any(not 1 <= loss.from_seq <= loss.to_seq <= batch.seq for loss in batch.losses):
        raise TracekitError("a loss is not a run of numbers up to its own")
    return [Loss(None, loss.from_seq, loss.to_seq, loss.reason, _counts(loss.rows)) for loss in batch.losses]


def _counts(counts: Mapping[str, int]) -> dict[str, int]:
    if unknown := sorted(_unknown(counts)):
        raise TracekitError(f"it counts rows of an unknown table: {unknown[0]!r}")
    return dict(counts)


def _unknown(names: Iterable[str]) -> set[str]:
    return set(names) - WIRE_TABLES.keys()


def _loss_rows(losses: list[Loss]) -> Tables:
    columns = {
        "from_seq": np.array([loss.from_seq for loss in losses], dtype="u8"),
        "to_seq": np.array([loss.to_seq for loss in losses], dtype="u8"),
        "reason": [loss.reason for loss in losses],
        "rows": [json.dumps(loss.rows, sort_keys=True) for loss in losses],
    }
    return {"losses": columns}
