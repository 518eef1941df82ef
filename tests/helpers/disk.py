"""A disk that forgets: what was not synced may be gone, cut or torn after a power loss, names as well as bytes.

It watches the real calls of this process. A folder after the power loss is made anew of what was synced and of a random
part of what was not, in pieces of 512 bytes, each for itself and in no order: harsher than any file system.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from pathlib import Path

SECTOR = 512


class Disk:
    """Watches one folder at a time."""

    def __init__(self, monkeypatch, rng: random.Random) -> None:
        self.rng = rng
        self.failing = 0  # syncs that are to fail, the pages being lost and called clean
        self._fsync, self._fdatasync = os.fsync, os.fdatasync
        monkeypatch.setattr(os, "fsync", lambda fd: self._sync(fd, self._fsync))
        monkeypatch.setattr(os, "fdatasync", lambda fd: self._sync(fd, self._fdatasync))
        self.reset()

    def reset(self) -> None:
        """Begin anew, as after a power loss: what is there is on the disk."""
        for fd in getattr(self, "_files", {}).values():
            os.close(fd)
        self._durable: dict[int, bytes] = {}  # content as of the last sync, by inode
        self._names: dict[str, int] = {}
        self._files: dict[int, int] = {}  # a descriptor of every inode that had a name

    def watch(self, folder: Path) -> None:
        """Take what is in a folder as being on the disk."""
        self.reset()
        self._look(folder)
        self._names = {path.name: path.lstat().st_ino for path in folder.iterdir()}
        for inode, fd in self._files.items():
            self._durable[inode] = _content(fd)

    def _look(self, folder: Path) -> None:
        for path in folder.iterdir():
            if path.is_file() and path.lstat().st_ino not in self._files:
                fd = os.open(path, os.O_RDONLY)
                self._files[os.fstat(fd).st_ino] = fd

    def _sync(self, fd: int, real) -> None:
        found = os.fstat(fd)
        is_folder = stat.S_ISDIR(found.st_mode)
        if self.failing and not is_folder:
            self.failing -= 1
            raise OSError(errno.EIO, "Input/output error")
        if is_folder:
            folder = Path(os.readlink(f"/proc/self/fd/{fd}"))
            self._look(folder)
            self._names = {path.name: path.lstat().st_ino for path in folder.iterdir()}
            return
        self._durable[found.st_ino] = _content(fd)

    def lose_power(self, folder: Path, into: Path) -> None:
        """Make `into` what may be left of `folder`."""
        self._look(folder)
        into.mkdir(mode=0o700)
        now = {path.name: path.lstat().st_ino for path in folder.iterdir()}
        for name in sorted({*now, *self._names}):
            inode = self.rng.choice([now.get(name), self._names.get(name)])
            if inode is not None and inode in self._files:
                (into / name).write_bytes(self._left(inode))

    def _left(self, inode: int) -> bytes:
        synced, cached = self._durable.get(inode, b""), _content(self._files[inode])
        left = bytearray()
        for at in range(0, max(len(synced), len(cached)), SECTOR):
            old, new = synced[at : at + SECTOR], cached[at : at + SECTOR]
            if old == new:
                left += old
                continue
            torn = new[: self.rng.randrange(len(new) + 1)] if new else b""
            choice = self.rng.choice([old, new, torn + old[len(torn) :]])
            left += choice.ljust(min(SECTOR, max(len(synced), len(cached)) - at), b"\0")
        sizes = [len(left), *([len(synced)] if len(synced) < len(left) else [])]
        return bytes(left[: self.rng.choice(sizes)]) if len(cached) >= len(synced) else bytes(left)


def _content(fd: int) -> bytes:
    with open(f"/proc/self/fd/{fd}", "rb") as file:
        return file.read()
