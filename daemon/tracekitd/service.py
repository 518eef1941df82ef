"""The two services: they translate between the wire, the catalog and the writer."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import grpc

from tracekit import __version__
from tracekit.rpc import messages
from tracekit.rpc.frames import Framed
from tracekit.tables import SCHEMA_VERSION
from tracekitd.budget import Budget
from tracekitd.catalog import Catalog, Engine
from tracekitd.commands import check_mark, choose, command, time_for
from tracekitd.gather import Gatherer
from tracekitd.intake import (
    Received,
    Refused,
    check_counters,
    check_hello,
    check_number,
    decode,
    find_gap,
    open_frame,
)
from tracekitd.peers import cut_off_strangers, party_of
from tracekitd.pieces import SECS as PIECES_SECS
from tracekitd.pieces import Pieces
from tracekitd.shares import largest, make_room
from tracekitd.stats import Stats
from tracekitd.watch import Watch
from tracekitd.writer import Writer

T = TypeVar("T")

MAX_STREAMS = 64  # of engines, and as many of trainers
MAX_GREETING = 64  # connected, and not yet said who they are; one more, and the longest silent of them ends
HELLO_SECS = 10.0
MAX_QUEUED_BYTES = 128 << 20  # received, not yet durable; beyond it nothing more is taken in
INLINE_BYTES = 64 << 10  # a smaller message is taken in on the event loop: a change of threads costs more
MAX_ENGINES = 1 << 16  # of one spool


class RecorderService:
    """`tracekit.v1.Recorder`: engines stream batches, and get cumulative acks of what is on the disk.

    Args:
        catalog: the engines.
        writer: takes what they send.
        stats: where it counts.
        failed: called for an error that is ours.
        watch: looks at what is received; None: nobody does.
    """

    def __init__(
        self,
        catalog: Catalog,
        writer: Writer,
        stats: Stats,
        failed: Callable[[BaseException], None],
        watch: Watch | None = None,
    ) -> None:
        self._catalog = catalog
        self._stats = stats
        self._loop = asyncio.get_running_loop()
        # one thread: what an engine sends stays in order, and the event loop is free meanwhile
        self._pool = ThreadPoolExecutor(1, "tracekitd-intake")
        self._gatherer = Gatherer(writer, self._pool, stats, self._durable, failed, watch)
        self._budget = Budget(MAX_QUEUED_BYTES)
        # by party one such batch at a time, whose pieces are in no budget
        self._in_pieces: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._greeting: dict[asyncio.Future[bytes], str] = {}  # hellos that are waited for, the oldest first, and whose
        self.closing = False  # engines that are known may finish, new ones are turned away

    async def record(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[messages.Ack]:
        """Serve one stream: the hello, then batches until it ends or is refused."""
        party = party_of(context)
        try:
            engine = await self._greet(requests, party)
        except Refused as refused:
            self._stats.refused[refused.code.name] += 1
            await context.abort(refused.code, str(refused))
            return
        number = engine.connected(party)
        receiver = asyncio.create_task(self._receive(engine, requests, number))
        try:
            acked, commands = engine.durable_seq, dict(engine.commands)
            sent = set(commands)
            yield messages.Ack(durable_seq=acked, commands=commands.values())
            while not receiver.done() or engine.durable_seq < engine.received_seq or acked < engine.durable_seq:
                if engine.stream != number:
                    receiver.cancel()
                    if not engine.open:
                        self._stats.refused[grpc.StatusCode.RESOURCE_EXHAUSTED.name] += 1
                        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "its place is that of others now")
                    await context.abort(grpc.StatusCode.ABORTED, "the engine has connected anew")
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
                self._stats.refused[refused.code.name] += 1
                await context.abort(refused.code, str(refused))
        finally:
            receiver.cancel()
            engine.disconnected(number)
            self._catalog.forget_silent(engine)

    def commit(self, then: Callable[[], None]) -> None:
        """Call `then` on the event loop when everything that was received is durable."""
        self._gatherer.commit(then)

    def close(self) -> None:
        """Hand the writer what is left; no stream may be open any more."""
        self._gatherer.commit()
        self._pool.shutdown()

    async def _greet(self, requests: AsyncIterator[bytes], party: str) -> Engine:
        cut_off_strangers()
        hello = asyncio.ensure_future(anext(requests, b""))
        if len(self._greeting) >= MAX_GREETING:  # whoever is honest has said it long since
            oldest = list(self._greeting)[largest(list(self._greeting.values()))]
            del self._greeting[oldest]
            oldest.cancel()
        self._greeting[hello] = party
        try:
            await asyncio.wait({hello}, timeout=HELLO_SECS)
            if not hello.done():
                text = f"a stream begins with a hello, within {HELLO_SECS:g} seconds"
                raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, text)
            if hello.cancelled():
                text = f"{MAX_GREETING} streams that came later have yet to say who they are"
                raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            data = hello.result()
        finally:
            hello.cancel()
            self._greeting.pop(hello, None)
        framed = open_frame(data)
        engine_id, trainer = check_hello(framed), framed.batch.hello.trainer
        known = self._catalog.find(engine_id)
        if self.closing and known is None:
            raise Refused(grpc.StatusCode.UNAVAILABLE, "the daemon is shutting down")
        engines = self._catalog.engines()
        # an engine that connects anew takes the place of its last stream
        taken = [e for e in engines if e.open and e is not known and e.trainer == trainer]
        if not make_room(taken, MAX_STREAMS, party):
            who = "trainers" if trainer else "engines"
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_STREAMS} {who} are connected already")
        if known is None and len(engines) >= MAX_ENGINES:
            raise Refused(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the spool has {MAX_ENGINES} engines already")
        return self._catalog.greet(engine_id, trainer)

    async def _receive(self, engine: Engine, requests: AsyncIterator[bytes], number: int) -> None:
        async for data in requests:
            if engine.stream != number:
                return  # who reads no acks is not told that it is over
            size = len(data)
            self._stats.messages += 1
            self._stats.bytes += size
            await self._budget.take(size)
            kept = False
            try:
                framed, received = await self._work(size, self._take_in, engine, data)
                batch = framed.batch
                if batch.seq <= engine.received_seq:
                    self._stats.duplicates += 1
                    continue  # sent again after a reconnect
                if received is None:
                    self._budget.give(size)
                    size = 0
                    payload = await self._whole(engine, framed, requests)
                    await self._budget.take(len(payload))
                    size = len(payload)
                    received = await self._work(size, decode, batch, payload, engine.number, engine.trainer)
                check_counters(received, engine.produced, engine.lost)
                if gap := find_gap(received, engine.received_seq, engine.produced):
                    received = received.behind(gap)
                engine.received(received.meta)
                self._stats.received(received)
                self._stats.queued_bytes += size
                self._gatherer.add(engine, received, size)
                kept = True
            finally:
                if not kept:
                    self._budget.give(size)

    def _take_in(self, engine: Engine, data: bytes) -> tuple[Framed, Received | None]:
        """Open and check one message of an engine; no batch where it is known already, or the first of its pieces."""
        framed = open_frame(data)
        batch = framed.batch
        check_number(batch, engine.engine_id)
        if batch.seq <= engine.received_seq or batch.pieces > 1:
            return framed, None
        return framed, decode(batch, framed.payload, engine.number, engine.trainer)

    async def _work(self, size: int, function: Callable[..., T], *arguments: Any) -> T:
        if size < INLINE_BYTES:
            return function(*arguments)
        return await self._loop.run_in_executor(self._pool, partial(function, *arguments))

    async def _whole(self, engine: Engine, framed: Framed, requests: AsyncIterator[bytes]) -> bytes:
        """Return the payload of a batch in pieces, of which `framed` is the first."""
        seq = framed.batch.seq
        async with self._in_pieces[engine.party]:
            try:
                async with asyncio.timeout(PIECES_SECS):
                    pieces = Pieces()
                    while not pieces.add(framed, seq):
                        framed = await self._work(INLINE_BYTES, open_frame, await anext(requests, b""))
                        check_number(framed.batch, engine.engine_id)
                    return pieces.payload()
            except TimeoutError:
                text = f"batch {seq} came in pieces, and not all of them within {PIECES_SECS:g} seconds"
                raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, text) from None

    def _durable(self, engine: Engine, received: list[Received], size: int) -> None:
        for one in received:
            for result in one.results:
                engine.answered(result)
        engine.durable(received[-1].meta.seq)
        self._stats.queued_bytes -= size
        self._budget.give(size)


class ControlService:
    """`tracekit.v1.Control`: what people and tools ask."""

    def __init__(self, catalog: Catalog, recorder: RecorderService, watch: Watch, spool: str) -> None:
        self._catalog = catalog
        self._watch = watch
        self._recorder = recorder
        self._spool = spool

    async def describe(self, _request: messages.DescribeRequest, _context: Any) -> messages.DescribeReply:
        """Say who we are."""
        return messages.DescribeReply(
            protocol=messages.PROTOCOL, schema=SCHEMA_VERSION, version=__version__, spool=self._spool
        )

    async def list_engines(self, request: messages.ListEnginesRequest, _context: Any) -> messages.ListEnginesReply:
        """List the engines that were ever seen, in the order of their numbers."""
        if request.live:
            self._watch.compare()
        return messages.ListEnginesReply(
            engines=[
                messages.EngineInfo(
                    engine_id=engine.engine_id,
                    engine=engine.number,
                    durable_seq=engine.durable_seq,
                    totals=messages.Counters(produced=engine.produced, lost=engine.lost),
                    open=engine.open,
                    ended=engine.ended,
                    trainer=engine.trainer,
                    live=self._watch.live(engine.number) if request.live else None,
                )
                for engine in self._catalog.engines()
            ]
        )

    async def flush(self, _request: messages.FlushRequest, _context: Any) -> messages.FlushReply:
        """Answer when everything received so far is on the disk."""
        done = asyncio.Event()
        self._recorder.commit(done.set)
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
