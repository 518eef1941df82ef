"""What a batch says about itself in its metadata, with the checksums that Arrow itself lacks."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from tracekit.errors import ChecksumError, TraceCorruptError
from tracekit.trace.batch import BatchMeta, rows_of
from tracekit.trace.runs import Run, is_count, is_counts

META_KEY = b"tracekit.batch"
CRC_KEY = b"tracekit.crc"


def to_metadata(batch: pa.RecordBatch, meta: BatchMeta) -> dict[bytes, bytes]:
    """Return the custom metadata of the batch's message: the meta with rows and checksums filled in, and its CRC."""
    facts = asdict(meta) | {"rows": {}, "crcs": {}}
    for name in batch.schema.names:
        rows = rows_of(batch, name)
        if len(rows):
            facts["rows"][name] = len(rows)
            facts["crcs"][name] = checksum(rows)
    text = json.dumps(facts, separators=(",", ":"), sort_keys=True).encode()
    return {META_KEY: text, CRC_KEY: b"%08x" % zlib.crc32(text)}


def from_metadata(metadata: Mapping[bytes, bytes] | None, where: str) -> BatchMeta:
    """Read back what `to_metadata` wrote.

    Raises:
        ChecksumError: it is missing or its checksum does not match.
        TraceCorruptError: its checksum matches, and it says what no writer writes.
    """
    try:
        text = (metadata or {})[META_KEY]
        if int((metadata or {})[CRC_KEY], 16) != zlib.crc32(text):
            raise ValueError
        facts = json.loads(text)
    except (KeyError, ValueError, TypeError, RecursionError):
        raise ChecksumError(f"the description of {where}") from None
    try:
        return _checked(facts)
    except (KeyError, ValueError, TypeError, AttributeError):
        raise TraceCorruptError(f"the description of {where} says what no writer writes") from None


def _checked(facts: Mapping[str, Any]) -> BatchMeta:
    seqs = tuple((first, last) for first, last in facts["seqs"])
    tuples = {"seqs": seqs, "ends": tuple(facts.get("ends", ())), "notes": tuple(facts.get("notes", ()))}
    meta = BatchMeta(**{**facts, **tuples})
    ends = meta.ends or tuple({"before": {}, "produced": {}, "lost": {}} for _ in seqs)
    for (first, last), counters in zip(seqs, ends, strict=True):
        Run.from_dict({"first": first, "last": last, **counters})
    numbers = (meta.engine, meta.seq, meta.of, meta.end, meta.first_seq)
    counts = (meta.produced, meta.lost, meta.rows, meta.crcs)
    flags, texts = (meta.last, meta.idle), (meta.engine_id, meta.nonce, *meta.notes)
    if not all(map(is_count, numbers)) or meta.engine >= 1 << 32 or meta.first_seq > meta.seq:
        raise ValueError
    if not all(map(is_counts, counts)):
        raise ValueError
    if not all(isinstance(flag, bool) for flag in flags) or not all(isinstance(text, str) for text in texts):
        raise ValueError
    for text in texts:
        text.encode()  # a lone surrogate cannot be printed
    return meta


def verify(batch: pa.RecordBatch, meta: BatchMeta, where: str) -> None:
    """Make sure that every table present in `batch` holds exactly what was written.

    Raises:
        ChecksumError: anything differs; the text names `where` and the table.
    """
    for name in batch.schema.names:
        try:
            column = batch.column(name)
            column.validate(full=True)
            rows = column.flatten()
            good = len(column) == 1 and len(rows) == meta.rows.get(name, 0)
            good = good and (len(rows) == 0 or checksum(rows) == meta.crcs.get(name))
        except (pa.ArrowException, ValueError):
            good = False
        if not good:
            raise ChecksumError(f"table {name} of {where}")


def checksum(rows: pa.StructArray) -> int:
    """Return the CRC-32 of the decoded values, which does not depend on how Arrow laid them out."""
    crc = zlib.crc32(b"%d" % len(rows))
    for index in range(rows.type.num_fields):
        crc = _crc_of(rows.field(index), crc)
    return crc


def _crc_of(array: pa.Array, crc: int) -> int:
    if array.null_count:
        crc = zlib.crc32(np.packbits(array.is_valid().to_numpy(zero_copy_only=False)).data, crc)
        array = array.fill_null("" if pa.types.is_string(array.type) else 0)
    if pa.types.is_list(array.type):
        crc = zlib.crc32(array.value_lengths().to_numpy().data, crc)
        return zlib.crc32(array.flatten().to_numpy().data, crc)
    if pa.types.is_string(array.type):
        _, offsets, data = array.buffers()
        bounds = (
            np.frombuffer(offsets, np.int32, len(array) + 1, array.offset * 4) if offsets else np.zeros(1, np.int32)
        )
        crc = zlib.crc32(np.diff(bounds).data, crc)
        return zlib.crc32(data[bounds[0] : bounds[-1]], crc) if data else crc
    return zlib.crc32(array.to_numpy().data, crc)
