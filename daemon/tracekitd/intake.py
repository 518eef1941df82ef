"""From a message off the wire to what the spool takes. Everything that an engine says is checked here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import grpc

from tracekit.errors import ChecksumError, TracekitError
from tracekit.rpc import messages
from tracekit.rpc.columns import Table, parse
from tracekit.rpc.frames import Framed, unframe
from tracekit.rpc.identity import id_of
from tracekit.tables import SCHEMA_VERSION
from tracekit.trace.batch import BatchMeta
from tracekit.trace.ledger import GAP, Loss
from tracekitd.bounds import check_json, counts_of, losses_of

ENGINE_ID = re.compile(r"[0-9a-f]{32}")


class Refused(Exception):
    """A stream that is ended with a status and one sentence."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Received:
    """One checked batch."""

    tables: Mapping[str, Table]
    losses: list[Loss]
    meta: BatchMeta  # its rows are filled in
    results: list[messages.CommandResult]

    def behind(self, gap: Loss) -> Received:
        """Return it with one more loss: the gap in front of it."""
        return replace(self, losses=[*self.losses, gap])


def open_frame(data: bytes) -> Framed:
    """Return what a message holds.

    Raises:
        Refused: DATA_LOSS where it was damaged on the way, INVALID_ARGUMENT where it is not a frame.
    """
    try:
        return unframe(data)
    except ChecksumError as error:
        raise Refused(grpc.StatusCode.DATA_LOSS, str(error)) from None
    except TracekitError as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from None


def check_hello(framed: Framed) -> str:
    """Return the engine id of a stream whose first message is the hello of a recorder that we understand.

    Raises:
        Refused: it is not.
    """
    batch = framed.batch
    if not batch.HasField("hello") or batch.seq or framed.payload:
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
    # it is a digest, so that how long the comparison takes tells nothing of the token
    if id_of(batch.hello.token) != batch.engine_id:
        raise Refused(grpc.StatusCode.PERMISSION_DENIED, "this engine_id is that of another recorder")
    return batch.engine_id


def check_role(tables: Mapping[str, Table], trainer: bool) -> None:
    """Make sure that a trainer annotates, and an engine does not: who did what is told by it.

    Raises:
        TracekitError: it is otherwise.
    """
    if wrong := sorted(name for name in tables if (name == "annotations") != trainer):
        who = "a trainer" if trainer else "an engine"
        raise TracekitError(f"{who} sends no rows of the table {wrong[0]}")


def check_number(batch: messages.Batch, engine_id: str) -> None:
    """Make sure that a batch is of the stream's engine and has a number.

    Raises:
        Refused: it is not.
    """
    if batch.engine_id != engine_id or not 1 <= batch.seq <= messages.MAX_SEQ:
        text = f"a batch needs its engine's id and a number from 1 to {messages.MAX_SEQ}"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)


def decode(batch: messages.Batch, payload: bytes, engine: int, trainer: bool) -> Received:
    """Check one whole batch against the tables and the bounds.

    Raises:
        Refused: INVALID_ARGUMENT for anything malformed.
    """
    try:
        tables, losses = parse(payload), losses_of(batch)
        check_role(tables, trainer)
        check_json(tables)
        meta = BatchMeta(
            engine=engine,
            engine_id=batch.engine_id,
            seq=batch.seq,
            produced=counts_of(batch.totals.produced),
            lost=counts_of(batch.totals.lost),
            last=batch.last,
            rows={name: table.rows for name, table in tables.items()},
        )
        return Received(tables, losses, meta, list(batch.results))
    except (TracekitError, ValueError) as error:
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f"batch {batch.seq} is malformed: {error}") from None


def check_counters(received: Received, produced: Mapping[str, int], lost: Mapping[str, int]) -> None:
    """Make sure that cumulative counters do not go back.

    Raises:
        Refused: they do.
    """
    for now, before in ((received.meta.produced, produced), (received.meta.lost, lost)):
        if any(count > now.get(name, 0) for name, count in before.items()):
            text = f"batch {received.meta.seq} is malformed: its counters go back"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, text)


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
    for other in (produced, received.meta.rows, *(loss.rows for loss in received.losses)):
        rows.subtract(other)
    return Loss(None, first, last, GAP, dict(+rows))
