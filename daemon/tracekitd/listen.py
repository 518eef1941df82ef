"""Where the daemon listens: a unix socket, and TCP only with TLS and a way to know who calls."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from pathlib import Path
from typing import Any

import grpc

from tracekit.errors import DaemonError, UsageError
from tracekit.rpc import messages
from tracekit.rpc.address import socket_of, target_of, tcp_of
from tracekitd.address import socket_path
from tracekitd.config import Config
from tracekitd.tls import Certificates
from tracekitd.tokens import Tokens

MAX_CONNECTIONS = 1024
OWN_DESCRIPTORS = 128  # for segments, parts, the archive, metrics

OPTIONS = [
    ("grpc.max_receive_message_length", messages.MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", messages.MAX_MESSAGE_BYTES),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # none but identity: 65 kB of it may be 64 MB
    ("grpc.max_concurrent_streams", 256),
    ("grpc.so_reuseport", 0),
]
TCP_OPTIONS = [
    ("grpc.max_connection_idle_ms", 60_000),  # without a call
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
]


def check_listen(config: Config) -> Path | None:
    """Return the path of the unix socket, None where there is none.

    Raises:
        UsageError: an address that cannot be, TCP without TLS, TCP that anybody could call, a file that cannot be used.
    """
    paths = [socket_path(address) for address in config.listen if tcp_of(address) is None]
    if not config.listen or len(paths) > 1:
        raise UsageError("tracekitd listens on one unix: socket, on grpcs:// addresses, or both")
    if len(paths) < len(config.listen):
        if config.cert is None or config.key is None:
            raise UsageError("grpcs:// needs --cert and --key")
        if config.token_file is None and config.client_ca is None:
            raise UsageError("anybody could call over grpcs:// without --token-file or --client-ca")
        Certificates(config.cert, config.key, config.client_ca)
        if config.token_file is not None:
            Tokens(config.token_file)
    return paths[0] if paths else None


def max_connections(num_listeners: int) -> int:
    """Return how many connections one address may have: strangers must leave the spool its descriptors."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    left = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else soft - OWN_DESCRIPTORS
    return max(1, min(MAX_CONNECTIONS, left // num_listeners))


class Listener:
    """One address and its server, not started yet.

    Args:
        address: `unix:PATH` or `grpcs://HOST:PORT`; port 0 is any that is free.
        config: that passed `check_listen`.

    Raises:
        UsageError: a certificate or the tokens cannot be used.
    """

    def __init__(self, address: str, config: Config) -> None:
        path = socket_of(address)
        self.path = None if path is None else path.absolute()  # of a unix socket
        self.address = address if self.path is None else f"unix:{self.path}"
        self._options = [*OPTIONS, ("grpc.max_allowed_incoming_connections", max_connections(len(config.listen)))]
        self._handlers: list[Any] = []
        self._bound: os.stat_result | None = None  # the socket that we made
        if self.path is not None:
            self._servers = [grpc.aio.server(options=self._options)]
            return
        assert config.cert is not None and config.key is not None
        self._certificates = Certificates(config.cert, config.key, config.client_ca)
        guards = [] if config.token_file is None else [Tokens(config.token_file)]
        self._servers = [grpc.aio.server(options=[*self._options, *TCP_OPTIONS], interceptors=guards)]

    async def start(self, handlers: list[Any]) -> None:
        """Listen; a socket is readable by its owner only.

        Args:
            handlers: gRPC's, of what is served.

        Raises:
            DaemonError: the address cannot be had.
        """
        self._handlers = handlers
        await self._start(self._servers[0])

    def is_there(self) -> bool:
        """Whether what lies at the path of our socket is our socket."""
        assert self.path is not None and self._bound is not None
        try:
            return os.path.samestat(self.path.lstat(), self._bound)
        except OSError:
            return False

    async def listen_again(self) -> None:
        """Listen at the path of our socket, which is gone, beside what serves those that are connected.

        Raises:
            DaemonError: the address cannot be had.
        """
        server = grpc.aio.server(options=self._options)
        await self._start(server)
        self._servers.append(server)

    async def stop(self, grace_secs: float) -> None:
        """End all calls, after a grace."""
        await asyncio.gather(*(server.stop(grace_secs) for server in self._servers))

    async def _start(self, server: Any) -> None:
        server.add_generic_rpc_handlers(self._handlers)
        try:
            if self.path is not None:
                server.add_insecure_port(target_of(self.address))
                await server.start()
                os.chmod(self.path, 0o600)
                self._bound = self.path.lstat()
            else:
                port = server.add_secure_port(tcp_of(self.address), self._certificates.credentials())
                await server.start()
                self.address = f"{self.address.rpartition(':')[0]}:{port}"
        except (RuntimeError, OSError) as error:
            raise DaemonError(f"cannot listen on {self.address}: {self._reason() or error}") from None

    def _reason(self) -> str | None:
        """Return why a TCP address cannot be had, which gRPC does not tell."""
        host, _, port = (tcp_of(self.address) or "").rpartition(":")
        try:
            for family, kind, _, _, place in socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM):
                with socket.socket(family, kind) as probe:
                    probe.bind(place)
        except OSError as error:
            return error.strerror
        return None
