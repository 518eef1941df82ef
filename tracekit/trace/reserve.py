"""Space that a spool keeps on its disk: on a full one it can still say what it has, and let go of what is elsewhere."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from pathlib import Path

from tracekit.trace.index import INDEX_NAME, Index

RESERVE_NAME = "reserve"
RESERVE_BYTES = 64 << 10  # or twice the index, where that is larger


class Reserve:
    """A file of a spool's folder that gives way to the index.

    Args:
        folder: of the spool.
        lock: without it nobody appends, or what waits for space would take this.
    """

    def __init__(self, folder: Path, lock: threading.Lock) -> None:
        self._folder, self._path, self._lock = folder, folder / RESERVE_NAME, lock

    def write(self, index: Index) -> None:
        """Write the index, in place of the reserve where the disk is full.

        Raises:
            OSError: the disk refused; the old index stands.
        """
        try:
            index.write(self._folder)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            with self._lock:
                self.remove()
                try:
                    index.write(self._folder)
                finally:
                    self._fill()
        else:
            self._fill()

    def remove(self) -> None:
        """Give the space back."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _fill(self) -> None:
        """Take the space, where it is to be had."""
        with contextlib.suppress(OSError):
            wanted = max(RESERVE_BYTES, 2 * (self._folder / INDEX_NAME).lstat().st_size)
            if self._path.exists() and self._path.lstat().st_size >= wanted:
                return
            self.remove()
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, wanted)
            except OSError:
                self.remove()
            finally:
                os.close(fd)
