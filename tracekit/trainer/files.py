"""The records of a dump: JSON lines, Parquet, Arrow or torch, compressed or not, told by what is in the file."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracekit.errors import TrainerDumpError
from tracekit.trainer.types import Record

_ZSTD, _GZIP = b"\x28\xb5\x2f\xfd", b"\x1f\x8b"
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"  # torch.save since 1.6, and before


def read_records(path: Path) -> tuple[list[tuple[str, Record]], list[str]]:
    """Read a file, or all files below a folder, in the order of their names.

    Returns:
        Records with the place of each, and the files of a folder that hold none of a known kind.

    Raises:
        TrainerDumpError: there is no such file, it cannot be read, or it is of no known kind.
    """
    if not path.exists():
        raise TrainerDumpError(f"there is no such dump of a trainer: {path}")
    if path.is_file():
        return list(_of_file(path, path.name)), []
    found: list[tuple[str, Record]] = []
    not_read: list[str] = []
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = str(file.relative_to(path))
        if _kind(_bytes(file)) is None:
            not_read += [name] if file.stat().st_size else []  # prime-rl marks a finished step with an empty file
        else:
            found += _of_file(file, name)
    if not found:
        raise TrainerDumpError(f"no file below this folder is a trainer's dump that is known here: {path}")
    return found, not_read


def _of_file(path: Path, name: str) -> Iterator[tuple[str, Record]]:
    data = _bytes(path)
    kind = _kind(data)
    if kind is None:
        raise TrainerDumpError(f"this is neither JSON, Parquet, Arrow nor a file of torch.save: {path}")
    values = {"json": _json, "parquet": _parquet, "arrow": _arrow, "torch": _torch}[kind](data, path)
    for number, value in values:
        if not isinstance(value, dict):
            raise TrainerDumpError(f"record {number} of the trainer's dump is not an object: {path}")
        yield f"{name}:{number}", value


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        if data.startswith(_GZIP):
            return gzip.decompress(data)
        if data.startswith(_ZSTD):
            import pyarrow as pa

            with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
                return bytes(stream.read())
    except (OSError, EOFError) as error:
        raise TrainerDumpError(f"the trainer's dump cannot be read ({error}): {path}") from error
    return data


def _kind(data: bytes) -> str | None:
    if data.startswith(b"PAR1"):
        return "parquet"
    if data.startswith(b"ARROW1"):
        return "arrow"
    if data.startswith((_ZIP, _PICKLE)):
        return "torch"
    return "json" if data.removeprefix(codecs.BOM_UTF8).lstrip()[:1] in (b"{", b"[") else None


def _json(data: bytes, path: Path) -> Iterator[tuple[int, Any]]:
    text = data.decode("utf-8-sig", errors="replace")
    try:
        if text.lstrip().startswith("["):
            yield from enumerate(json.loads(text))
            return
        # not splitlines: a text may hold what Unicode takes for the end of a line
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield number, json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TrainerDumpError(f"the trainer's dump is not JSON lines ({error}): {path}") from error


def _parquet(data: bytes, path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield from enumerate(pq.read_table(pa.BufferReader(data)).to_pylist())
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TrainerDumpError(f"the trainer's dump is not Parquet that can be read ({error}): {path}") from error


def _arrow(data: bytes, path: Path) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa

    try:
        yield from enumerate(pa.ipc.open_file(pa.BufferReader(data)).read_all().to_pylist())
    except (pa.ArrowException, OSError, ValueError) as error:
        raise TrainerDumpError(f"the trainer's dump is not Arrow that can be read ({error}): {path}") from error


def _torch(data: bytes, path: Path) -> Iterator[tuple[int, Any]]:
    import torch

    try:
        # a pickle that names code would run it: the dump of a stranger is not opened otherwise
        yield 0, torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TrainerDumpError(
            "this file holds more than tensors, lists, numbers and texts, and reading it would run code from it, which "
            f"tracekit does not do: save it again without objects of the framework's classes: {path}"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise TrainerDumpError(
            f"torch cannot read the trainer's dump ({str(error).splitlines()[0]}): {path}"
        ) from error
