"""What must outlive a power loss, or may have been put there by somebody else: folders, whole files, safe reads."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable: a file that is synced is lost all the same while its name is not.

    Raises:
        OSError: the disk refused.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, all of them the owner's alone, and all of their names durable.

    Raises:
        OSError: it cannot be made.
    """
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    for part in reversed(missing):
        part.mkdir(mode=0o700, exist_ok=True)
        sync_folder(part.parent)
    if not folder.is_dir():
        raise NotADirectoryError(20, "Not a directory")


def replace_file(path: Path, data: bytes) -> None:
    """Give a file, readable by its owner alone, new content: after a crash it has the old or the new one.

    Raises:
        OSError: the disk refused; the old content stands.
    """
    draft = path.with_name(path.name + ".new")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)
    os.replace(draft, path)
    sync_folder(path.parent)


def cut(path: Path, size: int) -> None:
    """Cut a file, durably.

    Raises:
        OSError: the disk refused.
    """
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, size)
        os.fsync(fd)
    finally:
        os.close(fd)


def open_regular(path: Path) -> int:
    """Open a file for reading that must be one: not a link out of its folder, not a pipe that never answers.

    Raises:
        OSError: it is something else, or cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(22, "Not a regular file")
    return fd


class OpenFile:
    """A file that can be read at any place for as long as this lives, also after its name is gone."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            OSError: as `open_regular`.
        """
        self._file = os.fdopen(open_regular(path), "rb", buffering=0)  # closes it with the last who reads
        self._fd = self._file.fileno()
        self.size = os.fstat(self._fd).st_size
        place = f"/proc/self/fd/{self._fd}"
        self.path = place if os.path.exists(place) else str(path)  # opens the same file, also after its name is gone

    def read(self, offset: int, length: int) -> bytes:
        """Return these bytes; fewer where the file ends.

        Raises:
            OSError: the disk refused.
        """
        parts = []
        while length and (part := os.pread(self._fd, length, offset)):
            parts.append(part)
            offset, length = offset + len(part), length - len(part)
        return b"".join(parts)
