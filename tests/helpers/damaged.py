"""What a file of any bytes is to the reader and to `recover`, as a whole: rows that were written, or one sentence."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from helpers.wire import numbered_tokens
from tracekit.errors import TracekitError
from tracekit.rpc.columns import count_rows
from tracekit.tables import TABLES
from tracekit.trace.batch import BatchMeta, to_record_batch
from tracekit.trace.reader import Trace, open_trace
from tracekit.trace.recover import recover
from tracekit.trace.seal import seal
from tracekit.trace.segments import segment_name, segment_paths
from tracekit.trace.spool import SpoolWriter

ROWS, BATCHES = 5, 3
WRITTEN = frozenset(numbered_tokens(0, ROWS * BATCHES)["tokens"]["token_id"].tolist())


def samples(folder: Path) -> dict[str, bytes]:
    """Return the bytes of a small sealed file, and of the segment that it was made of."""
    produced: dict[str, int] = {}
    with SpoolWriter(folder / "spool") as writer:
        for number in range(BATCHES):
            tables = numbered_tokens(number * ROWS, ROWS)
            produced = {name: rows * (number + 1) for name, rows in count_rows(tables).items()}
            meta = BatchMeta(0, "ab" * 16, number + 1, produced, {}, number + 1 == BATCHES)
            writer.append(to_record_batch(tables, 0), meta)
    (segment,) = segment_paths(folder / "spool")
    seal(folder / "spool", folder / "sealed.arrow")
    return {"sealed": (folder / "sealed.arrow").read_bytes(), "segment": segment.read_bytes()}


def outcome(data: bytes, folder: Path) -> set[str]:
    """Read a file of these bytes as a trace, as the segment of a spool, and with `recover`; return how it went.

    Args:
        data: the bytes.
        folder: where they may be written.
    """
    alone, spool, out = folder / "t.arrow", folder / "s", folder / "out.arrow"
    shutil.rmtree(spool, ignore_errors=True)
    spool.mkdir()
    for path in (alone, spool / segment_name(0)):
        path.write_bytes(data)
    found = {_read(alone), _read(spool)}
    for path in (alone, spool):
        out.unlink(missing_ok=True)
        with _sentence():
            recover(path, out)
            found.add(_read(out))
    return found


def _read(path: Path) -> str:
    with _sentence():
        trace = open_trace(path)
        _look(trace)
        return "complete" if trace.complete else "damaged"
    return "refused"


def _look(trace: Trace) -> None:
    trace.notes()
    for name in TABLES:
        table = trace.table(name)
        table.validate(full=True)
        if name == "tokens":
            assert set(table.column("token_id").to_pylist()) <= WRITTEN


@contextlib.contextmanager
def _sentence():
    try:
        yield
    except TracekitError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 1000, str(error)
