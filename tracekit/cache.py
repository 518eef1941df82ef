"""The cache folder: where it is, whole folders built once under a lock, and a marker that says they are whole."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tracekit.errors import CacheError

MARKER = "tracekit-complete.json"


def cache_dir() -> Path:
    """Return tracekit's cache folder: $TRACEKIT_CACHE, else $XDG_CACHE_HOME/tracekit, else ~/.cache/tracekit."""
    if own := os.environ.get("TRACEKIT_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "tracekit"


def short_hash(*parts: str) -> str:
    """Return 12 hex digits that identify the given texts in order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()[:12]


@contextmanager
def locked(folder: Path, progress: Callable[[str], None]) -> Iterator[None]:
    """Hold the file lock `<folder>.lock`; a second process waits here, and a dead one holds nothing.

    Raises:
        CacheError: the cache folder cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = open(folder.with_name(folder.name + ".lock"), "w")
    except OSError as error:
        raise CacheError(
            f"the cache folder cannot be written ({error.strerror}; TRACEKIT_CACHE names another): {folder.parent}"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"another process is building {folder.name}, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_marker(folder: Path, name: str = MARKER) -> dict[str, Any] | None:
    """Return what the marker of `folder` says, or None where it is missing or was cut off."""
    try:
        found = json.loads((folder / name).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_marker(folder: Path, facts: dict[str, Any], name: str = MARKER) -> None:
    """Write the marker durably and last: whoever sees it sees a whole folder."""
    part = folder / (name + ".part")
    with open(part, "w") as file:
        json.dump(facts, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, folder / name)
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_folder(folder: Path) -> None:
    """Remove `folder` with all it holds; the marker goes first, so that half a removal is not taken for whole."""
    (folder / MARKER).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise CacheError(f"a half-built folder cannot be removed: {folder}")


def require_space(folder: Path, num_bytes: int, what: str) -> None:
    """Raise CacheError when the disk under `folder` has less than `num_bytes` free."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise CacheError(
            f"{what} needs about {num_bytes / 1e9:.1f} GB of disk and only {free / 1e9:.1f} GB are free "
            f"(set TRACEKIT_CACHE to use another disk): {folder}"
        )
