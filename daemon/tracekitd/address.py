"""The daemon's unix socket: a private folder, a lock that outlives nothing, no second daemon on a live path."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

from tracekit.errors import DaemonError, UsageError
from tracekit.rpc.address import socket_of

MAX_PATH_BYTES = 107  # what sockaddr_un holds


def socket_path(listen: str) -> Path:
    """Return the absolute path of a `unix:` address.

    Raises:
        UsageError: any other kind of address, or a path that is too long for a socket or that gRPC cannot reach.
    """
    path = socket_of(listen)
    if path is None:
        raise UsageError(f"tracekitd listens on unix:PATH or, with TLS, on grpcs://HOST:PORT: {listen}")
    absolute = path.absolute()
    if "," in str(absolute):  # gRPC takes it for a list of addresses, however it is written
        raise UsageError(f"nobody could connect to a socket whose path holds a comma: {absolute}")
    if len(os.fsencode(absolute)) > MAX_PATH_BYTES:
        raise UsageError(f"the socket's path is longer than {MAX_PATH_BYTES} bytes: {absolute}")
    return absolute


class Claim:
    """A socket's path that is ours while inside: its folder is private, its lock is ours, a stale socket is gone.

    The lock is what protects a live daemon: gRPC itself binds over a socket in use without a word. Where somebody
    deleted the lock of a live one, its socket still answers.

    Args:
        path: absolute.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Path(f"{path}.lock")
        self._fd = -1

    def __enter__(self) -> Claim:
        """Take it.

        Raises:
            DaemonError: the folder is open to others or cannot be made, a live daemon has the path, or it is not a
                socket.
        """
        self._fd = self._take()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._is_ours():  # else the socket that is there is that of another daemon
                _remove_socket(self._path)
        finally:
            os.close(self._fd)

    def renew(self) -> None:
        """Take it again, where somebody deleted the folder or what is in it.

        Raises:
            DaemonError: as for the first time; what is held stays.
        """
        if self._is_ours():
            check_folder(self._path.parent)
            return
        fd, self._fd = self._fd, self._take()
        os.close(fd)

    def _take(self) -> int:
        _private_folder(self._path.parent)
        try:
            fd = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise DaemonError(f"cannot take the lock of the socket ({error.strerror}): {self._lock}") from None
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise DaemonError(f"another tracekitd is listening there: unix:{self._path}") from None
            if _answers(self._path):
                raise DaemonError(f"another tracekitd is listening there, whose lock was deleted: unix:{self._path}")
            _remove_socket(self._path)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _is_ours(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), self._lock.lstat())
        except OSError:
            return False


def _private_folder(folder: Path) -> None:
    try:
        for made in (*reversed(folder.parents), folder):  # `parents=True` would make those on the way for everybody
            made.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise DaemonError(f"cannot use the socket's folder ({error.strerror}): {folder}") from None
    check_folder(folder)


def check_folder(folder: Path) -> None:
    """Make sure that the folder of a socket lets nobody else in.

    Raises:
        DaemonError: it does, or cannot be looked at.
    """
    try:
        found = folder.stat()
    except OSError as error:
        raise DaemonError(f"cannot use the socket's folder ({error.strerror}): {folder}") from None
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise DaemonError(f"the socket's folder must be yours alone (chmod 700): {folder}")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(os.fsencode(path)) in (0, errno.EAGAIN)  # EAGAIN: its queue is full


def _remove_socket(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise DaemonError(f"there is something that is not a socket: {path}")
    path.unlink(missing_ok=True)
