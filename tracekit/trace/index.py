"""The index of a spool: which engines and files there are, so that none of them can vanish without a word.

One JSON file with a checksum, replaced as a whole. It is written before anything that it names is confirmed to anybody,
and after what it calls whole is on the disk.
"""

from __future__ import annotations

import json
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tracekit.errors import SchemaTooNewError, TraceCorruptError
from tracekit.tables import SCHEMA_VERSION
from tracekit.trace.durable import OpenFile, replace_file
from tracekit.trace.runs import Run, is_count, is_counts

INDEX_NAME = "index.json"
MAX_INCIDENTS = 100
_MAX_BYTES = 256 << 20


@dataclass
class Standing:
    """How far an engine had got, without a gap, when the index was written."""

    engine: int
    seq: int = 0
    produced: dict[str, int] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)
    last: bool = False

    def run(self) -> Run | None:
        """Return it as a run from the engine's first batch; None where nothing is known but that it is there."""
        return Run(1, self.seq, {}, self.produced, self.lost, self.last) if self.seq else None


@dataclass
class Part:
    """Segments that were sealed while the recording goes on."""

    bytes: int
    made_ns: int  # of the wall clock
    archived: str = ""  # the object that holds the same, compared byte for byte; empty where there is none
    here: bool = True  # it lies in the folder, too


@dataclass
class Seals:
    """A trace that is being made of a spool: which file, by which sealing, of which segments."""

    out: str
    name: str
    files: list[str]


@dataclass
class Index:
    """What a spool holds.

    Attributes:
        nonce: in every batch of this spool, so that bytes of somebody's prompt cannot pass for one.
        engines: by engine id.
        growing: hot segments that are being written, and how many bytes of them are on the disk.
        whole: hot segments that are not written any more, and their size in bytes.
        parts: by name.
        superseded: files whose content is in others by now, to be removed.
        losses: that recorders told aside from their batches: engine_id, from_seq, to_seq, reason, rows.
        incidents: what the disk did, in words; nothing is lost by them.
        blind: there was damage when there was no index to tell what had been there.
        seals: the trace that is being made of it.
    """

    nonce: str = field(default_factory=lambda: uuid.uuid4().hex)
    schema: int = SCHEMA_VERSION
    engines: dict[str, Standing] = field(default_factory=dict)
    growing: dict[str, int] = field(default_factory=dict)
    whole: dict[str, int] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    superseded: list[str] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)
    incidents: list[str] = field(default_factory=list)
    blind: bool = False
    seals: Seals | None = None

    def incident(self, text: str) -> None:
        """Add what happened; the first ones are kept."""
        if len(self.incidents) < MAX_INCIDENTS:
            self.incidents.append(text)

    def drop(self, folder: Path) -> None:
        """Remove what is superseded, which the index on the disk says already.

        Raises:
            OSError: the disk refused.
        """
        for name in self.superseded:
            (folder / name).unlink(missing_ok=True)
        self.superseded = []

    def write(self, folder: Path) -> None:
        """Put it into the folder, durably.

        Raises:
            OSError: the disk refused; the old one stands.
        """
        facts = asdict(self)
        replace_file(folder / INDEX_NAME, json.dumps({"index": facts, "crc": _crc(facts)}, indent=1).encode())


def read_index(folder: Path) -> Index | None:
    """Return the index of a spool, None where there is none.

    Raises:
        TraceCorruptError: it is not what was written.
        SchemaTooNewError: a newer tracekit wrote it.
    """
    path = folder / INDEX_NAME
    try:
        file = OpenFile(path)
        if file.size > _MAX_BYTES:
            raise ValueError
        whole = json.loads(file.read(0, file.size))
        facts = whole["index"]
        if whole["crc"] != _crc(facts):
            raise ValueError
        if is_count(facts["schema"]) and facts["schema"] > SCHEMA_VERSION:
            raise SchemaTooNewError(f"this spool has schema {facts['schema']} and this tracekit reads up to "
                                    f"{SCHEMA_VERSION}, get a newer one: {folder}")  # fmt: skip
        return _checked(facts)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise TraceCorruptError(f"the index of the spool is damaged: {path}") from None


def _checked(facts: Mapping[str, Any]) -> Index:
    engines = {str(name): Standing(**standing) for name, standing in facts["engines"].items()}
    for standing in engines.values():
        if not (is_count(standing.engine) and standing.engine < 1 << 32 and is_count(standing.seq)):
            raise ValueError
        if not (is_counts(standing.produced) and is_counts(standing.lost) and isinstance(standing.last, bool)):
            raise ValueError
    seals = None if facts["seals"] is None else Seals(**facts["seals"])
    parts = {str(name): Part(**part) for name, part in facts["parts"].items()}
    for part in parts.values():
        if not (is_count(part.bytes) and is_count(part.made_ns) and isinstance(part.archived, str)):
            raise ValueError
    index = Index(**{**facts, "engines": engines, "seals": seals, "parts": parts})
    names = [*index.growing, *index.whole, *index.parts, *index.superseded, *(seals.files if seals else ())]
    if any(not isinstance(name, str) or "/" in name for name in names) or not all(
        is_count(size) for size in (*index.growing.values(), *index.whole.values())
    ):
        raise ValueError
    if not all(isinstance(text, str) for text in (index.nonce, *index.incidents)):
        raise ValueError
    if not all(map(is_told, index.losses)):
        raise ValueError
    return index


def is_told(loss: Mapping[str, Any]) -> bool:
    """Say whether something is what a recorder can tell aside: engine_id, from_seq, to_seq, reason, rows."""
    texts = (loss["engine_id"], loss["reason"])
    if not (is_count(loss["from_seq"]) and is_count(loss["to_seq"]) and is_counts(loss["rows"])):
        return False
    return all((isinstance(text, str) and text.isascii()) or _encodes(text) for text in texts)


def _encodes(text: Any) -> bool:
    try:
        return isinstance(text, str) and bool(text.encode() or True)
    except UnicodeEncodeError:
        return False


def _crc(facts: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(facts, sort_keys=True, separators=(',', ':')).encode()):08x}"
