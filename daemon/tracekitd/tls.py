"""The certificates of a TCP listener: read again when their files change, so that a new one needs no restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc

from tracekit.errors import UsageError
from tracekit.rpc.credentials import read_authorities, read_pair
from tracekitd.log import say


class Certificates:
    """What a server shows to clients, and by what it knows them.

    Args:
        cert: certificate chain, PEM.
        key: its key, readable by its owner only.
        client_ca: who signs the certificates that clients must have; None: they need none.

    Raises:
        UsageError: a file cannot be used.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._seen = self._stamps()
        self._current = self._read()

    def credentials(self) -> Any:
        """Return grpc's server credentials, which ask us at each handshake."""
        return grpc.dynamic_ssl_server_credentials(self._current, self._fetch, self._client_ca is not None)

    def _fetch(self) -> Any:
        """Return a configuration where the files changed; called by gRPC's threads, it must not raise."""
        stamps = self._stamps()
        if stamps == self._seen:
            return None
        self._seen = stamps
        try:
            self._current = self._read()
        except UsageError as error:
            say(f"the last certificate stays in use: {error}")
            return None
        say(f"took the certificate anew: {self._cert}")
        return self._current

    def _read(self) -> Any:
        pair = read_pair(self._key, self._cert)
        roots = None if self._client_ca is None else read_authorities(self._client_ca)
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    def _stamps(self) -> list[tuple[int, int, int]]:
        return [stamp_of(path) for path in (self._cert, self._key, self._client_ca) if path is not None]


def stamp_of(path: Path) -> tuple[int, int, int]:
    """Return what changes when a file is replaced or written, or may be read by others; zeros where there is none."""
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_ctime_ns, found.st_size)
