"""What a daemon answers beside the streams of engines: few calls at once, asked soon, so that each costs little."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection import SERVICE_NAME as REFLECTION
from grpc_reflection.v1alpha.reflection import aio as reflection

from tracekit.rpc.methods import SERVICES
from tracekitd.peers import party_of

MAX_CALLS = 64  # of one party; what a request may be, 4 MiB, gRPC takes in before anybody looks at it
REQUEST_SECS = 10.0
HEALTH = "grpc.health.v1.Health"

Serve = Callable[[AsyncIterator[Any], Any], AsyncIterator[Any]]


def handlers(servicers: Mapping[str, Any], alive: Callable[[], bool]) -> list[Any]:
    """Return gRPC's handlers of one address; the descriptor says which methods each servicer must have.

    Args:
        servicers: by service; a method that streams bounds itself.
        alive: what health says, of the daemon as a whole.
    """
    calls = _Calls()
    made = {
        service: {
            name: grpc.stream_stream_rpc_method_handler(
                getattr(servicer, method.handler_name)
                if method.streams
                else calls.bounded(_unary(getattr(servicer, method.handler_name)), method.request.FromString),
                response_serializer=method.reply.SerializeToString,
            )
            for name, method in SERVICES[service].items()
        }
        for service, servicer in servicers.items()
    }
    shown = reflection.ReflectionServicer((*SERVICES, HEALTH, REFLECTION)).ServerReflectionInfo
    made[REFLECTION] = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            calls.bounded(shown, reflection_pb2.ServerReflectionRequest.FromString),
            response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
    }
    made[HEALTH] = {"Check": _health(alive)}
    return [grpc.method_handlers_generic_handler(service, methods) for service, methods in made.items()]


def _health(alive: Callable[[], bool]) -> Any:
    """Return a handler that anybody may call: it reads nothing of what is sent, keeps nothing and never waits."""

    async def check(_requests: AsyncIterator[bytes], _context: Any) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        status = health_pb2.HealthCheckResponse.SERVING if alive() else health_pb2.HealthCheckResponse.NOT_SERVING
        yield health_pb2.HealthCheckResponse(status=status)

    return grpc.stream_stream_rpc_method_handler(
        check, response_serializer=health_pb2.HealthCheckResponse.SerializeToString
    )


def _unary(function: Callable[[Any, Any], Any]) -> Serve:
    async def serve(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield await function(request, context)
            return

    return serve


class _Calls:
    """Those under way. Even a unary one is served as a stream, or gRPC would read its request before we are asked."""

    def __init__(self) -> None:
        self._num: Counter[str] = Counter()  # by party

    def bounded(self, serve: Serve, parse: Callable[[bytes], Any]) -> Serve:
        async def bounded(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            party = party_of(context)
            if self._num[party] >= MAX_CALLS:
                await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_CALLS} calls are under way")
            self._num[party] += 1
            try:
                async for reply in serve(_requests(requests, parse), context):
                    yield reply
            except TimeoutError:
                text = f"a request comes within {REQUEST_SECS:g} seconds"
                await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, text)
            except DecodeError:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "this is not the request of that call")
            finally:
                self._num -= Counter([party])  # keeps no zeros

        return bounded


async def _requests(requests: AsyncIterator[bytes], parse: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    while True:
        try:
            yield parse(await asyncio.wait_for(anext(requests), REQUEST_SECS))
        except StopAsyncIteration:
            return
