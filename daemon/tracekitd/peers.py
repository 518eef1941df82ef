"""Who is at the other end: of our unix socket gRPC does not tell, the kernel does."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from typing import Any

from tracekitd.tokens import digest_of

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


def party_of(context: Any) -> str:
    """Return what is the same for all calls of one party: our user, a certificate, or a token.

    Over the unix socket everybody is our user, whatever he says. Over TCP a certificate was asked for and has been
    verified, or else the token has been.
    """
    if context.peer().startswith("unix:"):
        return "unix"
    proven = context.auth_context()
    names = [proven.get(f"x509_{name}") for name in ("subject", "subject_alternative_name")]
    return repr(names) if any(names) else digest_of(context.invocation_metadata()).hex()


def cut_off_strangers() -> int:
    """Shut every connection to a unix socket of this process whose other end is neither our user nor root.

    Modes keep strangers out already; this holds where somebody opened the folder or handed the descriptor on. It is to
    be called when a call comes in: the connection that it came over is among those looked at.

    Returns:
        How many were shut.
    """
    num_cut = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile, or not connected
            number = int(name)
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            with socket.socket(fileno=os.dup(number)) as found:
                if found.family != socket.AF_UNIX or found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    continue
                raw = found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
                pid, uid, _gid = _CREDENTIALS.unpack(raw)
                if pid and uid not in (os.geteuid(), 0):
                    found.shutdown(socket.SHUT_RDWR)
                    num_cut += 1
    return num_cut
