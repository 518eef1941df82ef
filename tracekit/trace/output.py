"""Create a file that appears whole or not at all, and never in place of another."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tracekit.errors import OutputError, OutputExistsError, UsageError
from tracekit.trace.durable import sync_folder

_DRAFT = ".tmp"


def check_output(path: str | os.PathLike[str]) -> None:
    """Make sure, before hours of work, that `path` can be created.

    Raises:
        OutputExistsError: it exists already.
        OutputError: its folder is missing or not writable.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise OutputExistsError(path)
    probe = _beside(path)
    try:
        os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        probe.unlink()
    except OSError as error:
        raise OutputError(f"cannot write into {path.absolute().parent}: {error.strerror}") from None


def check_outputs(*paths: str | os.PathLike[str] | None) -> None:
    """Do as `check_output` for each of several; None is no path.

    Raises:
        UsageError: two of them are the same.
    """
    given = [Path(path) for path in paths if path is not None]
    for number, path in enumerate(given):
        if path.absolute() in [other.absolute() for other in given[:number]]:
            raise UsageError(f"two outputs cannot be one file: {path}")
        check_output(path)


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Write a file beside `path` that takes its place, synced, when the block ends well, and vanishes when not.

    Raises:
        OutputError: as `check_output`, or the disk refused a write.
    """
    path = Path(path)
    check_output(path)
    temporary = _beside(path)
    try:
        with open(temporary, "xb", opener=_private) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # while it is held, somebody is writing it
            _remove_left(path, temporary)
            yield file
            file.flush()
            os.fsync(file.fileno())
            _name(temporary, path)
            sync_folder(path.absolute().parent)
    except FileExistsError:
        raise OutputExistsError(path) from None
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _name(temporary: Path, path: Path) -> None:
    """Give the file its name, by a link: a rename would overwrite what appeared meanwhile."""
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        check_output(path)  # this disk has no hard links
        os.rename(temporary, path)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def _remove_left(path: Path, ours: Path) -> None:
    """Remove the drafts of this file that killed writers left; one that is being written is locked."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*{_DRAFT}"):
        if left == ours:
            continue
        with contextlib.suppress(OSError), open(left, "rb", opener=_not_a_link) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _not_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{_DRAFT}")
