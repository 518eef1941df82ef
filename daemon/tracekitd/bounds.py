"""What a batch may say: numbers that fit what they end in, texts of a size, JSON where JSON is read."""

from __future__ import annotations

import json
from collections.abc import Mapping

from tracekit.errors import TracekitError
from tracekit.rpc import messages
from tracekit.rpc.columns import WIRE_TABLES, Table, texts
from tracekit.trace.ledger import Loss

MAX_LOSSES = 1000  # in one batch; a recorder coalesces them by reason
MAX_RESULTS = 1000

# what reads a trace takes these for JSON objects, and the second ones for JSON
JSON_OBJECTS = {"engines": ("config",), "workers": ("config",), "requests": ("sampling_params", "labels")}
JSON_VALUES = {"weights": ("arguments",), "control": ("arguments", "answer")}


def check_json(tables: Mapping[str, Table]) -> None:
    """Make sure that the columns that hold JSON do.

    Raises:
        TracekitError: one does not.
    """
    for wanted, objects in ((JSON_OBJECTS, True), (JSON_VALUES, False)):
        for name, columns in wanted.items():
            if table := tables.get(name):
                for column in columns:
                    _check_column(f"{name}.{column}", table, column, objects)


def _check_column(where: str, table: Table, column: str, objects: bool) -> None:
    # most requests of a job have the same parameters
    for text in set(texts(table.columns[column], table.rows)):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise TracekitError(f"{where} is not JSON") from None
        if objects and not isinstance(value, dict):
            raise TracekitError(f"{where} is not a JSON object")


def losses_of(batch: messages.Batch) -> list[Loss]:
    """Return the losses that a batch reports.

    Raises:
        TracekitError: they are too many, or not runs of numbers up to its own.
    """
    losses, results = batch.losses, batch.results
    if not losses and not results:
        return []  # nearly all are like this
    if len(losses) > MAX_LOSSES or len(results) > MAX_RESULTS:
        raise TracekitError(f"it reports more than {MAX_LOSSES} losses or results")
    if any(not 1 <= loss.from_seq <= loss.to_seq <= batch.seq for loss in losses):
        raise TracekitError("a loss is not a run of numbers up to its own")
    told = [*(loss.reason for loss in losses), *(text for r in results for text in (r.id, r.error))]
    if any(len(text) > messages.MAX_TEXT for text in told):
        raise TracekitError(f"a reason or an answer has more than {messages.MAX_TEXT} characters")
    return [Loss(None, loss.from_seq, loss.to_seq, loss.reason, counts_of(loss.rows)) for loss in losses]


def counts_of(counts: Mapping[str, int]) -> dict[str, int]:
    """Return rows by table.

    Raises:
        TracekitError: of an unknown table, or more than anybody has.
    """
    found = dict(counts)
    if not found.keys() <= WIRE_TABLES.keys():
        raise TracekitError(f"it counts rows of an unknown table: {min(found.keys() - WIRE_TABLES.keys())!r}")
    if found and max(found.values()) > messages.MAX_COUNT:
        raise TracekitError(f"it counts more than {messages.MAX_COUNT} rows")
    return found
