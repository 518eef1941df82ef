"""The daemon as a whole: server, signals, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from tracekit.errors import EXIT_DATA_LOST, EXIT_OK, DaemonError, TracekitError, UsageError
from tracekit.objects.address import Address
from tracekit.rpc import idle
from tracekit.rpc.methods import CONTROL, RECORDER
from tracekit.trace.output import check_output
from tracekit.trace.spool import SpoolWriter
from tracekitd import log, metrics
from tracekitd.address import Claim, check_folder
from tracekitd.calls import handlers
from tracekitd.catalog import Catalog
from tracekitd.config import Config
from tracekitd.keeper import Keeper
from tracekitd.listen import Listener, check_listen
from tracekitd.log import say
from tracekitd.roller import Roller
from tracekitd.sealing import finish, seal_spool, take_notes, tell
from tracekitd.service import ControlService, RecorderService
from tracekitd.stats import Stats
from tracekitd.watch import Watch
from tracekitd.writer import Writer

CANCEL_SECS = 1.0  # for calls that are still open when the grace is over
FLUSH_SECS = 10.0  # for a disk that refuses when the daemon ends
POLL_SECS = 0.05
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Daemon:
    """A server that is not started yet. Make it with `create_server`, on the event loop that runs it."""

    def __init__(self, config: Config, spool: SpoolWriter, claim: Claim | None) -> None:
        self.config = config
        self.spool = spool
        self.addresses: list[str] = []  # that it listens on, once it does
        self.catalog = Catalog(spool.resume())
        self.stopping = asyncio.Event()
        self.failed = False
        self._hurry = False
        self._grace_secs = config.grace
        self._loop = asyncio.get_running_loop()
        self._listeners = [Listener(address, config) for address in config.listen]  # who refuses, before any thread
        self._writer = Writer(spool, self._writer_failed)
        self._roller = Roller(spool, config)
        self._stats = Stats()
        self._watch = Watch(compare=config.metrics is not None)
        self._recorder = RecorderService(self.catalog, self._writer, self._stats, self._writer_failed, self._watch)
        self._metrics: Any = None
        control = ControlService(self.catalog, self._recorder, self._watch, str(config.spool.absolute()))
        self._servicers = {RECORDER: self._recorder, CONTROL: control}
        self._keeper: Keeper | None = None
        if claim is not None:
            self._keeper = Keeper(claim, next(listener for listener in self._listeners if listener.path is not None))
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            DaemonError: an address cannot be had.
        """
        for listener in self._listeners:
            await listener.start(handlers(self._servicers, self._is_well))
            self.addresses.append(listener.address)
        if self._keeper is not None:
            self._keeping = asyncio.create_task(self._keeper.run())
        if self.config.metrics is not None:
            collector = metrics.Collector(self._stats, self.catalog, self._writer, self._watch)
            self._metrics = metrics.serve(self.config.metrics, collector)
            say(f"metrics at http://{self.config.metrics.rpartition(':')[0]}:{self._metrics.server_port}/metrics")

    def _is_well(self) -> bool:
        """What health says."""
        return not self._recorder.closing and (self._keeper is None or self._keeper.reachable)

    def shut_down(self) -> None:
        """Ask for the end; asked again, it comes without the grace."""
        self._hurry = self.stopping.is_set()
        self.stopping.set()

    def reload(self, load: Callable[[], Config]) -> None:
        """Take the settings anew that can change while engines are connected; the rest is said, and stays."""
        try:
            config = load()
        except TracekitError as error:
            say(f"the settings stay as they are: {error}")
            return
        self._grace_secs = config.grace
        self._roller.keep(config)
        log.as_json = config.log == "json"
        fixed = [f.name for f in fields(Config) if getattr(config, f.name) != getattr(self.config, f.name)]
        fixed = [name for name in fixed if name not in ("grace", "log", "keep_secs", "keep_bytes")]
        say("the settings were read anew" + (f"; after a restart: {', '.join(fixed)}" if fixed else ""))

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
        self._recorder.closing = True
        deadline = self._loop.time() + self._grace_secs
        while any(engine.open and not engine.ended for engine in self.catalog.engines()):
            if self._hurry or self._loop.time() >= deadline:
                break
            await asyncio.sleep(POLL_SECS)
        if self._keeping is not None:
            self._keeping.cancel()
        await asyncio.gather(*(listener.stop(CANCEL_SECS) for listener in self._listeners))
        if self._metrics is not None:
            await asyncio.to_thread(self._metrics.shutdown)
        await asyncio.to_thread(self._recorder.close)
        await asyncio.to_thread(self._roller.stop)
        await asyncio.to_thread(self._writer.stop, FLUSH_SECS)
        await asyncio.sleep(0)  # the writer's last confirmations reach the catalog

    @property
    def given_up(self) -> int:
        """How many batches a disk refused to the end."""
        return self._writer.given_up

    def _writer_failed(self, error: BaseException) -> None:
        traceback.print_exception(error)
        self.failed = True
        self._loop.call_soon_threadsafe(self.stopping.set)


def create_server(config: Config, claim: Claim | None) -> Daemon:
    """Return a daemon over the spool of `config`; call it where an event loop runs.

    Args:
        config: what to do.
        claim: to the path of its unix socket; None where it has none.

    Raises:
        OutputError: another daemon writes the spool, or it cannot be written.
        TraceError: what is in the spool folder cannot be read.
    """
    return Daemon(config, spool_of(config), claim)


def check(config: Config) -> None:
    """Make sure that a daemon could be run so; nothing is made or touched.

    Raises:
        TracekitError: it could not.
    """
    path = _check(config)
    if path is not None and path.parent.exists():
        check_folder(path.parent)
    if config.seal is not None:
        check_output(config.seal)


def _check(config: Config) -> Path | None:
    """Make sure that settings can be; return the path of the unix socket, None where there is none."""
    path = check_listen(config)
    if config.metrics is not None:
        metrics.check_metrics(config.metrics)
    if config.archive is not None:
        Address.of(config.archive)
    if config.spool.exists() and not config.spool.is_dir():
        raise UsageError(f"the spool is a folder, and this is none: {config.spool}")
    return path


def spool_of(config: Config) -> SpoolWriter:
    """Take the spool.

    Raises:
        OutputError: another daemon writes it, or it cannot be written.
    """
    return SpoolWriter(config.spool, segment_bytes=int(config.roll_bytes), segment_secs=config.roll_secs, say=say)


def run(config: Config, reload: Callable[[], Config] | None = None) -> int:
    """Serve until one of `SIGNALS`, or as `Config.attached` says; seal if asked to, and return the exit code.

    Args:
        config: what to do.
        reload: gives the settings anew at SIGHUP; None: SIGHUP ends it.

    Raises:
        TracekitError: the address, the spool or the output cannot be used.
    """
    log.as_json = config.log == "json"
    path = _check(config)
    if config.attached:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # also while it seals
    notes = config.spool / "none" if path is None else path  # who comes over TCP leaves none
    with contextlib.nullcontext() if path is None else Claim(path) as claim:
        if config.seal is not None and (code := _sealed_before(config.spool, config.seal)) is not None:
            return code
        daemon = asyncio.run(_serve(config, claim, reload))
        try:
            take_notes(daemon.spool, notes, daemon.catalog)
            code = EXIT_DATA_LOST if daemon.given_up else EXIT_OK
            if config.seal is not None:
                return max(code, seal_spool(daemon.spool, config.seal, notes, daemon.catalog))
        finally:
            daemon.spool.close()
        for engine in daemon.catalog.engines():
            if engine.ended:
                idle.remove(notes, engine.engine_id)
    return code


def _sealed_before(folder: Path, out: Path) -> int | None:
    """Make sure that there can be a trace; return the exit code that a killed daemon owed, if it has made it."""
    if os.path.lexists(out) and folder.is_dir():
        with SpoolWriter(folder, say=say) as spool:
            if finish(spool) == out.absolute():
                spool.remove()
                return tell(out)
    check_output(out)
    return None


async def _serve(config: Config, claim: Claim | None, reload: Callable[[], Config] | None) -> Daemon:
    daemon = create_server(config, claim)
    gc.freeze()  # what is here by now stays: the collector need not look through it, batch after batch
    loop = asyncio.get_running_loop()
    if config.attached:
        loop.add_reader(sys.stdin.fileno(), daemon.hear)
    for number in SIGNALS:
        if number == signal.SIGHUP and reload is not None and not config.attached:
            loop.add_signal_handler(number, daemon.reload, reload)  # under nohup, too
        elif signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, daemon.shut_down)
    try:
        await daemon.start()
        say(f"listening on {', '.join(daemon.addresses)}")
        await daemon.stopping.wait()
    finally:
        await daemon.stop()
    if daemon.failed:
        raise DaemonError(f"the writer failed, see above; what it confirmed is in the spool {config.spool}")
    return daemon
