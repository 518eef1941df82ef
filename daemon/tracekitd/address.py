"""The daemon's unix socket: a private folder, a lock that outlives nothing, no second daemon on a live path."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
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


@contextlib.contextmanager
def claim(path: Path) -> Iterator[None]:
    """Own the socket's path while inside: its folder is private, its lock is ours, a stale socket is gone.

    The lock is what protects a live daemon: gRPC itself binds over a socket in use without a word. Where somebody
    deleted the lock of a live one, its socket still answers.

    Raises:
        DaemonError: the folder is open to others or cannot be made, a live daemon has the path, or it is not a socket.
    """
    _private_folder(path.parent)
    lock = Path(f"{path}.lock")
    try:
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise DaemonError(f"cannot take the lock of the socket ({error.strerror}): {lock}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DaemonError(f"another tracekitd is listening there: unix:{path}") from None
        if _answers(path):
            raise DaemonError(f"another tracekitd is listening there, whose lock was deleted: unix:{path}")
        _remove_socket(path)
        yield
        _remove_socket(path)
    finally:
        os.close(fd)


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
