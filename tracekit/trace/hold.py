"""Who writes a spool: the folder and the lock file in it are held together, so that deleting one lets nobody in."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

from tracekit.errors import OutputError
from tracekit.trace.durable import make_folder

LOCK_NAME = "lock"
_UNABLE = (errno.EBADF, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # NFS cannot lock a folder


class Hold:
    """A spool folder that is ours until `release`."""

    def __init__(self, folder: Path) -> None:
        """Take it, making it (0700) where it is missing.

        Raises:
            OutputError: another writer holds it.
            OSError: it cannot be made or locked.
        """
        self._folder = folder
        self._fds: list[int] = []
        for _ in range(20):
            make_folder(folder)
            if self._take():
                return
            self.release()
            time.sleep(0.01)  # a reader holds it for an instant, to see whether a writer does
        raise OutputError(f"another tracekitd is writing this spool: {folder}")

    def release(self) -> None:
        """Let go; a second call does nothing."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def remove(self, name: str) -> None:
        """Remove the folder if nothing but the lock and `name` is in it, and let go: who waits for it finds it gone.

        Whoever is killed meanwhile leaves the folder as it was, or none: one that is empty would be a new spool.
        """
        gone = self._folder.with_name(f"{self._folder.name}.gone")
        try:
            if set(os.listdir(self._folder)) <= {LOCK_NAME, name}:
                _clear(gone, name)
                self._folder.rename(gone)
                _clear(gone, name)
        except OSError:
            pass  # it is a mount, or not ours to move
        self.release()

    def _take(self) -> bool:
        """Lock both, and make sure that both are still what the path names: who had them may have removed them."""
        try:
            folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._fds.append(folder)
            if not _locked(folder, fcntl.LOCK_EX):
                return False
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            lock = os.open(LOCK_NAME, flags, 0o600, dir_fd=folder)
            self._fds.append(lock)
            if not _locked(lock, fcntl.LOCK_EX):
                return False
            named = os.stat(self._folder), os.stat(LOCK_NAME, dir_fd=folder)
            return all(os.path.samestat(os.fstat(fd), found) for fd, found in zip(self._fds, named, strict=True))
        except FileNotFoundError:
            return False


def _clear(folder: Path, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        for one in (LOCK_NAME, name):
            (folder / one).unlink(missing_ok=True)
        folder.rmdir()


def is_live(folder: Path) -> bool:
    """Say whether a writer holds the spool right now."""
    for path, flags in ((folder, os.O_DIRECTORY), (folder / LOCK_NAME, os.O_NOFOLLOW | os.O_NONBLOCK)):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
        except OSError:
            continue
        try:
            if not _locked(fd, fcntl.LOCK_SH):
                return True
        finally:
            os.close(fd)
    return False


def _locked(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in _UNABLE:
            raise
    return True
