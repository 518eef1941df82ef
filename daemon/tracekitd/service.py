"""The two services: they translate between the wire, the catalog and the writer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import grpc

from tracekit import __version__
from tracekit.rpc import messages
from tracekit.rpc.methods import SERVICES, Method
from tracekit.tables import SCHEMA_VERSION
from tracekitd.catalog import Catalog, Engine
from tracekitd.commands import check_mark, choose, command, time_for
from tracekitd.intake import Refused, check_hello, decode, find_gap, parse
from tracekitd.writer import Writer

MAX_STREAMS = 64
MAX_QUEUED_BYTES = 128 << 20  # received, not yet durable; beyond it nothing more is read off the wire
INLINE_BYTES = 64 << 10  # a smaller payload is decoded on the event loop: a change of threads costs more


class RecorderService:
    """`tracekit.v1.Recorder`: engines stream batches, and get cumulative acks of what is on the disk."""

    def __init__(self, catalog: Catalog, writer: Writer) -> None:
        self._catalog = catalog
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._queued_bytes = 0
        self._room = asyncio.Event()
        self._room.set()
        self.closing = False  # engines that are known may finish, new ones are turned away

    async def record(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[messages.Ack]:
        """Serve one stream: the hello, then batches until it ends or is refused."""
        try:
            engine = await self._greet(requests)
        except Refused as refused:
            await context.abort(refused.code, str(refused))
            return
        engine.connected(1)
        receiver = asyncio.create_task(self._receive(engine, requests))
        try:
            acked, commands = engine.durable_seq, dict(engine.commands)
            sent = set(commands)
            yield messages.Ack(durable_seq=acked, commands=commands.values())
            while not receiver.done() or engine.durable_seq < engine.received_seq or acked < engine.durable_seq:
                commands = {name: command for name, command in engine.commands.items() if name not in sent}
                if acked == engine.durable_seq and not commands:
                    await _first_of(engine.progress, receiver)
                    continue
                acked = engine.durable_seq
                sent |= set(commands)
                yield messages.Ack(durable_seq=acked, commands=commands.values())
            # the batches before a bad one are confirmed by now, so the recorder can tell which it was
            try:
                await receiver
            except Refused as refused:
                await context.abort(refused.code, str(refused))
        finally:
            receiver.cancel()
            engine.connected(-1)

    async def _greet(self, requests: AsyncIterator[bytes]) -> Engine:
        hello = parse(await anext(requests, b""))
        check_hello(hello)
        if self.closing and hello.engine_id not in self._catalog:
            raise Refused(grpc.StatusCode.UNAVAILABLE, "the daemon is shutting down")
        if sum(engine.streams for engine in self._catalog.engines()) >= MAX_STREAMS:
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_STREAMS} engines are connected already")
        return self._catalog.greet(hello.engine_id)

    async def _receive(self, engine: Engine, requests: AsyncIterator[bytes]) -> None:
        async for data in requests:
            batch = parse(data)
            if 0 < batch.seq <= engine.received_seq:
                continue  # sent again after a reconnect
            await self._room.wait()
            work = partial(decode, batch, engine.number, engine.engine_id)
            received = work() if len(batch.payload) < INLINE_BYTES else await asyncio.to_thread(work)
            # from here to the append nothing may wait: a second stream of this engine could overtake
            if batch.seq <= engine.received_seq:
                continue
            if gap := find_gap(received, engine.received_seq, engine.produced):
                received = received.behind(gap)
            meta = received.meta
            engine.received_seq = meta.seq
            engine.produced, engine.lost, engine.last = meta.produced, meta.lost, meta.last
            self._queue_bytes(len(batch.payload))
            self._writer.append(received.arrow, meta, self._confirmer(engine, batch))

    def _confirmer(self, engine: Engine, batch: messages.Batch) -> Any:
        seq, size, results = batch.seq, len(batch.payload), list(batch.results)

        def confirm() -> None:
            engine.durable(seq)
            for result in results:
                engine.answered(result)
            self._queue_bytes(-size)

        return lambda: self._loop.call_soon_threadsafe(confirm)

    def _queue_bytes(self, size: int) -> None:
        self._queued_bytes += size
        if self._queued_bytes < MAX_QUEUED_BYTES:
            self._room.set()
        else:
            self._room.clear()


class ControlService:
    """`tracekit.v1.Control`: what people and tools ask."""

    def __init__(self, catalog: Catalog, writer: Writer, spool: str) -> None:
        self._catalog = catalog
        self._writer = writer
        self._spool = spool

    async def describe(self, _request: messages.DescribeRequest, _context: Any) -> messages.DescribeReply:
        """Say who we are."""
        return messages.DescribeReply(
            protocol=messages.PROTOCOL, schema=SCHEMA_VERSION, version=__version__, spool=self._spool
        )

    async def list_engines(self, _request: messages.ListEnginesRequest, _context: Any) -> messages.ListEnginesReply:
        """List the engines that were ever seen, in the order of their numbers."""
        return messages.ListEnginesReply(
            engines=[
                messages.EngineInfo(
                    engine_id=engine.engine_id,
                    engine=engine.number,
                    durable_seq=engine.durable_seq,
                    totals=messages.Counters(produced=engine.produced, lost=engine.lost),
                    open=engine.streams > 0,
                    ended=engine.ended,
                )
                for engine in self._catalog.engines()
            ]
        )

    async def flush(self, _request: messages.FlushRequest, _context: Any) -> messages.FlushReply:
        """Answer when everything received so far is on the disk."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            loop.call_soon_threadsafe(done.set)

        self._writer.flush(tell)
        await done.wait()
        return messages.FlushReply()

    async def mark_weights(self, request: messages.MarkWeightsRequest, context: Any) -> messages.MarkWeightsReply:
        """Answer when every asked engine has confirmed the label, or will not before the caller gives up."""
        try:
            engines = choose(self._catalog.engines(), list(request.engines))
            check_mark(request.mark)
        except Refused as refused:
            await context.abort(refused.code, str(refused))
        seconds = time_for(context.time_remaining())
        results = await asyncio.gather(*(command(e, request.mark, seconds) for e in engines))
        marked = [
            messages.MarkedEngine(engine=engine.number, engine_id=engine.engine_id, result=result)
            for engine, result in zip(engines, results, strict=True)
        ]
        return messages.MarkWeightsReply(engines=marked)


async def _first_of(progress: asyncio.Event, receiver: asyncio.Task[None]) -> None:
    """Wait until there is progress or, if it still runs, the receiver ends."""
    waiter = asyncio.ensure_future(progress.wait())
    try:
        tasks: set[asyncio.Future[Any]] = {waiter} if receiver.done() else {waiter, receiver}
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()


def handlers(servicers: Mapping[str, Any]) -> list[Any]:
    """Return gRPC's handlers of these servicers, by service; the descriptor says which methods each must have."""
    return [
        grpc.method_handlers_generic_handler(
            service,
            {
                name: _handler(method, getattr(servicer, method.handler_name))
                for name, method in SERVICES[service].items()
            },
        )
        for service, servicer in servicers.items()
    ]


def _handler(method: Method, function: Any) -> Any:
    if method.streams:
        return grpc.stream_stream_rpc_method_handler(function, None, method.reply.SerializeToString)
    return grpc.unary_unary_rpc_method_handler(function, method.request.FromString, method.reply.SerializeToString)
