"""Who may call over TCP: whoever has a token of the file. Compared in constant time, and read again when it changes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import grpc

from tracekit.errors import UsageError
from tracekit.rpc.credentials import read_tokens
from tracekitd.log import say
from tracekitd.tls import stamp_of

OPEN = "/grpc.health.v1.Health/Check"  # what watches a container has no token, and learns nothing but that we live


class Tokens(grpc.aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Lets calls through that carry one of the tokens; none while the file cannot be used.

    Args:
        path: one token per line, readable by its owner only.

    Raises:
        UsageError: the file cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = stamp_of(path)
        self._digests = [_digest(token) for token in read_tokens(path)]

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], call: Any) -> Any:
        """See `grpc.aio.ServerInterceptor`."""
        if call.method == OPEN or self._knows(digest_of(call.invocation_metadata)):
            return await continuation(call)
        return grpc.stream_stream_rpc_method_handler(_refuse)

    def _knows(self, given: bytes) -> bool:
        self._refresh()
        return any([hmac.compare_digest(given, known) for known in self._digests])

    def _refresh(self) -> None:
        stamp = stamp_of(self._path)
        if stamp == self._seen:
            return
        self._seen = stamp
        try:
            self._digests = [_digest(token) for token in read_tokens(self._path)]
        except UsageError as error:
            self._digests = []
            say(f"nobody is let in over TCP: {error}")


def digest_of(metadata: Iterable[tuple[str, Any]] | None) -> bytes:
    """Return the digest of the token that a call carries, of nothing where it carries none."""
    return _digest(str(dict(metadata or ()).get("authorization", "")).removeprefix("Bearer "))


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


async def _refuse(_requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, "it has no token that this daemon knows")
    yield b""
