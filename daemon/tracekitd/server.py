"""The daemon as a whole: server, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import traceback

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tracekit.errors import EXIT_OK, DaemonError
from tracekit.rpc import idle, messages
from tracekit.rpc.address import target_of
from tracekit.rpc.methods import CONTROL, RECORDER, SERVICES
from tracekit.trace.output import check_output
from tracekit.trace.spool import SpoolWriter
from tracekitd.address import claim, socket_path
from tracekitd.catalog import Catalog
from tracekitd.config import Config
from tracekitd.log import say
from tracekitd.sealing import seal_spool
from tracekitd.service import ControlService, RecorderService, handlers
from tracekitd.writer import Writer

CANCEL_SECS = 1.0  # for calls that are still open when the grace is over
FLUSH_SECS = 10.0  # for a disk that refuses when the daemon ends
POLL_SECS = 0.05
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Daemon:
    """A server that is not started yet. Make it with `create_server`, on the event loop that runs it."""

    def __init__(self, config: Config, spool: SpoolWriter) -> None:
        self.config = config
        self.path = socket_path(config.listen)
        self.catalog = Catalog(spool.resume())
        self.stopping = asyncio.Event()
        self.failed = False
        self._hurry = False
        self._grace_secs = config.grace_secs
        self._loop = asyncio.get_running_loop()
        self._writer = Writer(spool, self._writer_failed)
        self._recorder = RecorderService(self.catalog, self._writer, self._writer_failed)
        self._health = health.aio.HealthServicer()
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", messages.MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", messages.MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
                ("grpc.compression_enabled_algorithms_bitset", 1),  # none but identity: 65 kB of it may be 64 MB
            ]
        )
        control = ControlService(self.catalog, self._recorder, str(config.spool.absolute()))
        self._server.add_generic_rpc_handlers(handlers({RECORDER: self._recorder, CONTROL: control}))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        shown = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(shown, self._server)

    async def start(self) -> None:
        """Listen on the socket, readable by its owner only.

        Raises:
            DaemonError: the socket cannot be made.
        """
        try:
            self._server.add_insecure_port(target_of(f"unix:{self.path}"))
            await self._server.start()
            os.chmod(self.path, 0o600)
        except (RuntimeError, OSError) as error:
            raise DaemonError(f"cannot listen on unix:{self.path}: {error}") from None
        for service in ("", *SERVICES):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)

    def shut_down(self) -> None:
        """Ask for the end; asked again, it comes without the grace."""
        self._hurry = self.stopping.is_set()
        self.stopping.set()

    def hear(self) -> None:
        """Read standard input: a line asks for the end; where who started us is gone, the last engine brings it."""
        if os.read(sys.stdin.fileno(), 1 << 10):
            self.shut_down()
            return
        self._loop.remove_reader(sys.stdin.fileno())
        if not self.stopping.is_set():
            self._grace_secs = math.inf
            self.stopping.set()

    async def stop(self) -> None:
        """Let the connected engines finish, within the grace, then end every call and put everything on the disk.

        Raises:
            OutputError: the disk refuses to the end.
        """
        await self._health.enter_graceful_shutdown()
        self._recorder.closing = True
        deadline = self._loop.time() + self._grace_secs
        while any(engine.open and not engine.ended for engine in self.catalog.engines()):
            if self._hurry or self._loop.time() >= deadline:
                break
            await asyncio.sleep(POLL_SECS)
        await self._server.stop(CANCEL_SECS)
        await asyncio.to_thread(self._recorder.close)
        await asyncio.to_thread(self._writer.stop, FLUSH_SECS)
        await asyncio.sleep(0)  # the writer's last confirmations reach the catalog

    def _writer_failed(self, error: BaseException) -> None:
        traceback.print_exception(error)
        self.failed = True
        self._loop.call_soon_threadsafe(self.stopping.set)


def create_server(config: Config) -> Daemon:
    """Return a daemon over the spool of `config`; call it where an event loop runs.

    Raises:
        OutputError: another daemon writes the spool, or it cannot be written.
        TraceError: what is in the spool folder cannot be read.
    """
    return Daemon(config, SpoolWriter(config.spool))


def run(config: Config) -> int:
    """Serve until one of `SIGNALS`, or as `Config.attached` says; seal if asked to, and return the exit code.

    Raises:
        TracekitError: the address, the spool or the output cannot be used.
    """
    path = socket_path(config.listen)
    if config.seal is not None:
        check_output(config.seal)
    if config.attached:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # also while it seals
    with claim(path):
        catalog = asyncio.run(_serve(config))
        if config.seal is not None:
            return seal_spool(config.spool, config.seal, path.parent, catalog)
        for engine in catalog.engines():
            if engine.ended:
                idle.remove(path.parent, engine.engine_id)
    return EXIT_OK


async def _serve(config: Config) -> Catalog:
    daemon = create_server(config)
    loop = asyncio.get_running_loop()
    if config.attached:
        loop.add_reader(sys.stdin.fileno(), daemon.hear)
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, daemon.shut_down)
    try:
        await daemon.start()
        say(f"listening on unix:{daemon.path}")
        await daemon.stopping.wait()
    finally:
        await daemon.stop()
    if daemon.failed:
        raise DaemonError(f"the writer failed, see above; what it confirmed is in the spool {config.spool}")
    return daemon.catalog
