"""Which format a dump is of, told by its records: one row per format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tracekit.errors import TrainerDumpError
from tracekit.trainer import padded, prime_rl, rows, slime
from tracekit.trainer.files import read_records
from tracekit.trainer.types import Dump, Record, Sample

T = TypeVar("T")
Records = list[tuple[str, Record]]


@dataclass(frozen=True)
class Format:
    """What a framework writes.

    Attributes:
        name: for people.
        tells: whether a record is of it.
        read: its records to samples.
    """

    name: str
    tells: Callable[[Record], bool]
    read: Callable[[Records], list[Sample]]


FORMATS = (
    Format("prime-rl token export", prime_rl.is_export, prime_rl.read_export),
    Format("slime debug dump", slime.is_slime, slime.read_slime),
    Format("TRL batch", padded.is_trl, padded.read_trl),
    Format("verl batch", padded.is_verl, padded.read_verl),
    Format("record --completions", rows.is_client_view, rows.read_client_view),
    Format("prime-rl annotations", prime_rl.is_annotation, prime_rl.read_annotations),
    Format("rows", lambda record: rows.has_ids(record, {}), lambda records: rows.read_rows(records, {})),
)
TEXTS = "texts"
MAPPED = "mapped rows"


def read_dump(path: str | Path, mapping: Mapping[str, str] | None = None) -> Dump:
    """Read what a trainer used.

    Args:
        path: a file, or a folder with files of one format.
        mapping: tracekit's name to the dump's, for records of no known format.

    Raises:
        TrainerDumpError: the dump cannot be read, is of no known format or of several, or is empty.
        UsageError: the mapping gives a name that is not known.

    Example:
        read_dump("train.jsonl.zst", {"old_logprob": "logps"}).samples
    """
    rows.check_mapping(mapping or {})
    records, not_read = read_records(Path(path))
    if not records:
        raise TrainerDumpError(f"the trainer's dump is empty: {path}")
    if mapping:
        return Dump(MAPPED, _read(MAPPED, path, lambda: rows.read_rows(records, mapping)), not_read=not_read)
    found: dict[str, Records] = {}
    for place in records:
        found.setdefault(_name(place, path), []).append(place)
    if len(found) > 1:
        raise TrainerDumpError(f"this dump mixes formats ({', '.join(sorted(found))}): give one at a time: {path}")
    (name, own), *_ = found.items()
    if name == TEXTS:
        return Dump(name, [], _read(name, path, lambda: padded.read_texts(own)), not_read=not_read)
    reader = next(form for form in FORMATS if form.name == name)
    return Dump(name, _read(name, path, lambda: reader.read(own)), clip=_clip(own), not_read=not_read)


def _read(name: str, path: str | Path, read: Callable[[], list[T]]) -> list[T]:
    """Read what looks like a format, and may be anything behind its first names."""
    try:
        return read()
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise TrainerDumpError(
            f"the trainer's dump has the names of a known format ({name}), and other contents "
            f"({type(error).__name__}: {error}): {path}"
        ) from error


def _name(place: tuple[str, Record], path: str | Path) -> str:
    where, record = place
    for form in FORMATS:
        if form.tells(record):
            return form.name
    if padded.is_text(record):
        return TEXTS
    names = ", ".join(sorted(map(str, record))[:12])
    raise TrainerDumpError(
        f"no known format of a trainer's dump has the names of {where} ({names}): say which is which, as in "
        f"--trainer-map old_logprob=logps --trainer-map token_ids=ids: {path}"
    )


def _clip(records: Records) -> tuple[float, float] | None:
    """The clip range that the dump names, as low and high part around 1."""
    for _, record in records:
        low, high = record.get("clip_low"), record.get("clip_high")
        if isinstance(low, int | float) and isinstance(high, int | float) and 0 < low <= 1 and 0 < high < float("inf"):
            return float(low), float(high)
    return None
