"""The HTTP server of the metrics: whoever asks slowly, or not at all, holds nothing up and costs little."""

from __future__ import annotations

import contextlib
import socket
import threading
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

MAX_OPEN = 16  # connections; one more, and the oldest of them ends


class Server(ThreadingMixIn, WSGIServer):
    """Serves one WSGI application from a thread of its own, until `shutdown`.

    Args:
        host: a name or an address, IPv6 too.
        port: 0 is any that is free; `server_port` has it.
        application: of WSGI.

    Raises:
        OSError: the address cannot be had.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, application: Any) -> None:
        self.address_family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        self._open: list[Any] = []
        super().__init__((host, port), _Handler)
        self.set_app(application)
        threading.Thread(target=self.serve_forever, name="tracekitd-metrics", daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:
        """See `socketserver.BaseServer`."""
        self._open.append(request)
        if len(self._open) > MAX_OPEN:
            with contextlib.suppress(OSError):
                self._open.pop(0).shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """See `socketserver.BaseServer`."""
        with contextlib.suppress(ValueError):
            self._open.remove(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: who asked went away, or never spoke HTTP."""


class _Handler(WSGIRequestHandler):
    timeout = 10.0  # seconds, for each piece of a request

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of each scrape."""
