"""Whether an engine that never said goodbye had told everything: a few bytes beside the daemon's socket.

What a process wrote into a file outlives it, however it is killed. The recorder claims here that it is idle: up to a
batch everything is told. What the engine does next takes the claim back on the engine's own thread, before a token of
it can be sampled, so that no claim stands that a kill could have made false. After the machine itself went down the
file may be an old one: a claim of an earlier boot is none.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

PREFIX = "idle-"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_NUMBER = struct.Struct("<Q")
_CLAIM = struct.Struct("<QQ")  # how often the engine was busy as of the claim, the number of the last batch
_FORM = struct.Struct("<QQQ36s")  # how often the engine was busy, the claim, the boot
_NO_CLAIM = (1 << 64) - 1


class Marker:
    """The recorder's end.

    No file is there before the first claim; where none can be made or written, no claim is.

    Args:
        socket: the daemon's; None where there is none.
        engine_id: 32 hex digits.

    Attributes:
        num_busy: how often `busy` was called.
    """

    def __init__(self, socket: Path | None, engine_id: str) -> None:
        self._path = None if socket is None else _path(socket, engine_id)
        self._fd: int | None = None
        self._file: os.stat_result | None = None
        self.num_busy = 0

    def busy(self) -> None:
        """Take the claim back: one small write, which waits for no disk; never raises."""
        self.num_busy += 1
        if self._fd is not None:
            try:
                self._write(_NUMBER.pack(self.num_busy), 0)
            except OSError:
                self._give_up()

    def claim(self, num_busy: int, seq: int) -> None:
        """Claim that everything is told up to batch `seq`, unless the engine was busy since; never raises.

        Args:
            num_busy: as of before the caller made sure that there is nothing left to tell.
            seq: number of the last batch or loss.
        """
        try:
            if self._fd is None and not self._open(num_busy):
                return
            # who was busy before the file was there could not say so in it
            if self._fd is not None and self.num_busy == num_busy:
                self._write(_CLAIM.pack(num_busy, seq), _NUMBER.size)
        except OSError:
            self._give_up()

    def close(self) -> None:
        """Let go of the file, whose claim stays; only where no other thread has the marker any more."""
        fd, self._path, self._fd = self._fd, None, None
        if fd is not None and self._is_ours(fd):
            os.close(fd)

    def _open(self, num_busy: int) -> bool:
        if self._path is None or not self._path.parent.is_dir():
            return False
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        os.pwrite(fd, _FORM.pack(num_busy, _NO_CLAIM, 0, _boot_id()), 0)
        self._fd, self._file = fd, os.fstat(fd)
        return True

    def _write(self, data: bytes, offset: int) -> None:
        """Write into the file.

        Raises:
            OSError: it cannot be written, or the descriptor is not its own any more.
        """
        fd = self._fd
        if fd is None or not self._is_ours(fd):
            raise OSError("the descriptor is another file's")
        os.pwrite(fd, data, offset)

    def _is_ours(self, fd: int) -> bool:
        """Whether a descriptor is still our file's: a job that closes all of them may have one of its own there."""
        try:
            return self._file is not None and os.path.samestat(os.fstat(fd), self._file)
        except OSError:
            return False

    def _give_up(self) -> None:
        """No claim must stand that can no longer be taken back."""
        path, self._path, self._fd = self._path, None, None  # the descriptor stays open: a thread may be writing
        if path is not None:
            path.unlink(missing_ok=True)


def read(socket: Path, engine_id: str) -> int | None:
    """Return the number of the batch by which an engine had told everything; None where it had not, or may not have."""
    try:
        data = _path(socket, engine_id).read_bytes()
        num_busy, claimed, seq, boot_id = _FORM.unpack(data)
        return int(seq) if num_busy == claimed and boot_id == _boot_id() else None
    except (OSError, struct.error):
        return None


def remove(socket: Path, engine_id: str) -> None:
    """Remove what an engine left."""
    _path(socket, engine_id).unlink(missing_ok=True)


def _path(socket: Path, engine_id: str) -> Path:
    return socket.with_name(f"{socket.name}.{PREFIX}{engine_id}")


def _boot_id() -> bytes:
    return BOOT_ID.read_bytes().strip()
