"""Whole tables as files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

ROWS_AT_ONCE = 4096


def write_parquet(table: pa.Table, file: IO[bytes]) -> None:
    """Write an Arrow table as Parquet."""
    pq.write_table(table, file, compression="zstd")


def write_jsonl(table: pa.Table, file: IO[bytes], line: Callable[[Mapping[str, Any]], str], compressed: bool) -> None:
    """Write an Arrow table as one line per row, as `line` writes them, through zstd if asked to."""
    # through a second descriptor: what compresses closes what is below it
    target: Any = pa.CompressedOutputStream(os.fdopen(os.dup(file.fileno()), "wb"), "zstd") if compressed else file
    for batch in table.to_batches(max_chunksize=ROWS_AT_ONCE):
        lines = "".join(line(row) + "\n" for row in batch.to_pylist())
        target.write(lines.encode())
    if compressed:
        target.close()
