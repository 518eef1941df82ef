"""The RPCs of proto/tracekit/v1, read from the descriptor: nowhere else are paths and messages written down.

What a client streams travels as the bytes that it is: a recorder has its batches serialized already, and bytes that are
not a message are for the daemon to refuse (gRPC would answer UNKNOWN with a traceback).
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from tracekit.rpc import messages

RECORDER = "tracekit.v1.Recorder"
CONTROL = "tracekit.v1.Control"


class Method(NamedTuple):
    """One RPC.

    Example:
        Method("/tracekit.v1.Control/Flush", "Flush", messages.FlushRequest, messages.FlushReply, streams=False)
    """

    path: str
    name: str
    request: Any  # message classes
    reply: Any
    streams: bool  # in both directions; no RPC of ours streams in one only

    @property
    def handler_name(self) -> str:
        """What the method of a servicer is called.

        Example:
            list_engines
        """
        return re.sub(r"(?<!^)(?=[A-Z])", "_", self.name).lower()

    def on(self, channel: Any) -> Any:
        """Return grpc's callable of this RPC on a channel."""
        if self.streams:
            return channel.stream_stream(
                self.path, request_serializer=None, response_deserializer=self.reply.FromString
            )
        return channel.unary_unary(
            self.path,
            request_serializer=self.request.SerializeToString,
            response_deserializer=self.reply.FromString,
        )


def _load() -> dict[str, dict[str, Method]]:
    def message(name: str) -> Any:
        return vars(messages)[name.rsplit(".", 1)[1]]

    return {
        f"{file.package}.{service.name}": {
            method.name: Method(
                f"/{file.package}.{service.name}/{method.name}",
                method.name,
                message(method.input_type),
                message(method.output_type),
                bool(method.client_streaming),
            )
            for method in service.method
        }
        for file in messages.FILES
        for service in file.service
    }


SERVICES = _load()  # by name: the RPCs of each, by name
