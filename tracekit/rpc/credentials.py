"""How a client reaches a daemon: a unix socket as it is, TCP only with TLS, and what proves who is asking."""

from __future__ import annotations

import contextlib
import os
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tracekit.errors import UsageError
from tracekit.rpc.address import socket_of, target_of, tcp_of

MIN_TOKEN = 16  # characters
MAX_FILE_BYTES = 1 << 20  # a system's own authorities are 200 kB

# what a half-open connection costs: after this long without an answer it is given up
KEEPALIVE = [("grpc.keepalive_time_ms", 30_000), ("grpc.keepalive_timeout_ms", 20_000)]


class Access(NamedTuple):
    """Files of a client; all that is not needed is None.

    Example:
        Access(token_file="/run/secrets/tracekit", ca_file="ca.pem")
    """

    token_file: str | None = None  # one token, sent with every call
    ca_file: str | None = None  # who signed the daemon's certificate; None: those that the system trusts
    cert_file: str | None = None  # our own certificate and its key, where the daemon wants one (mTLS)
    key_file: str | None = None

    @classmethod
    def of_environ(cls) -> Access:
        """Return what `TRACEKIT_TOKEN_FILE`, `TRACEKIT_CA_FILE`, `TRACEKIT_CERT_FILE`, `TRACEKIT_KEY_FILE` say."""
        return cls(*(os.environ.get(f"TRACEKIT_{name.upper()}") or None for name in cls._fields))


def open_channel(grpc: Any, address: str, access: Access, options: list[tuple[str, int]]) -> Any:
    """Return a new channel to a daemon; every file is read anew, so that it may be replaced while a job runs.

    Args:
        grpc: the module, imported by the caller.
        address: `unix:PATH` or `grpcs://HOST:PORT`.
        access: for the latter.
        options: of gRPC.

    Raises:
        UsageError: another kind of address, or a file that cannot be used.
    """
    # or a new channel inherits the back-off of the last
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), *options]
    if socket_of(address) is not None:
        return grpc.insecure_channel(target_of(address), options=options)
    target = tcp_of(address)
    if target is None:
        raise UsageError(f"only unix: and grpcs:// addresses are supported, not {address}")
    if (access.cert_file is None) != (access.key_file is None):
        raise UsageError("a client's certificate and its key go together")
    key, chain = None, None
    if access.cert_file is not None and access.key_file is not None:
        key, chain = read_pair(access.key_file, access.cert_file)
    roots = None if access.ca_file is None else read_authorities(access.ca_file)
    with _quiet():
        secrets = grpc.ssl_channel_credentials(root_certificates=roots, private_key=key, certificate_chain=chain)
        return grpc.secure_channel(target, secrets, options=[*options, *KEEPALIVE])


def metadata_of(address: str, access: Access) -> tuple[tuple[str, str], ...]:
    """Return what goes with every call: the token, over TLS only.

    Raises:
        UsageError: the token's file cannot be used.
    """
    if access.token_file is None or tcp_of(address) is None:
        return ()
    tokens = read_tokens(access.token_file)
    return (("authorization", f"Bearer {tokens[0]}"),)


def read_tokens(path: str | Path) -> list[str]:
    """Return the tokens of a file, one per line: two while one takes the place of the other.

    Raises:
        UsageError: others can read it, there is none in it, or one is short.
    """
    try:
        tokens = read_secret(path).decode("ascii").split()
    except UnicodeDecodeError:
        raise UsageError(f"a token is of ASCII letters and digits: {path}") from None
    if not tokens or any(len(token) < MIN_TOKEN for token in tokens):
        raise UsageError(f"the file must hold a token of at least {MIN_TOKEN} characters: {path}")
    return tokens


def read_secret(path: str | Path) -> bytes:
    """Return a file that nobody but its owner may read; of root's ones, also our group (Kubernetes makes them so).

    Raises:
        UsageError: it cannot be read, or others can read it.
    """
    data, found = _read(path)
    mode = stat.S_IMODE(found.st_mode)
    mounted = found.st_uid == 0 and os.geteuid() != 0 and not mode & 0o037
    if mode & 0o077 and not mounted:
        raise UsageError(f"others can read this secret (chmod 600): {path}")
    return data


def read_pair(key: str | Path, cert: str | Path) -> tuple[bytes, bytes]:
    """Return a private key and its certificate; gRPC takes any bytes, and then nobody can connect.

    Raises:
        UsageError: they cannot be read, others can read the key, it has a password, or the two do not go together.
    """
    pair = (read_secret(key), read_file(cert))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (OSError, ValueError):
        text = "these are not a key and a certificate in PEM that go together, without a password"
        raise UsageError(f"{text}: {key}, {cert}") from None
    return pair


def read_authorities(path: str | Path) -> bytes:
    """Return the certificates of who signs certificates.

    Raises:
        UsageError: they cannot be read, or are none.
    """
    data = read_file(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except (OSError, ValueError):
        raise UsageError(f"these are not certificates in PEM: {path}") from None
    return data


def read_file(path: str | Path) -> bytes:
    """Return a small file.

    Raises:
        UsageError: it cannot be read.
    """
    return _read(path)[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Have gRPC, which reads this at the first channel, say errors alone: else each failed handshake is a line."""
    name = "GRPC_VERBOSITY"
    mine = name not in os.environ
    if mine:
        os.environ[name] = "ERROR"
    try:
        yield
    finally:
        if mine:
            os.environ.pop(name, None)


def _read(path: str | Path) -> tuple[bytes, os.stat_result]:
    try:
        # nobody must wait for a pipe
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE_BYTES:
                raise UsageError(f"this is not a file of at most {MAX_FILE_BYTES >> 20} MiB: {path}")
            return file.read(MAX_FILE_BYTES), found
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
