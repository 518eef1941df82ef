"""What happens to a spool beside the writing: segments become parts, parts go to the archive, and old ones go.

One thread, of a lower priority. Nothing that it does is waited for by anybody who sends.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time

from tracekit.errors import OutputError, TracekitError
from tracekit.objects.address import Address
from tracekit.objects.store import Store
from tracekit.trace.index import Part
from tracekit.trace.spool import SpoolWriter
from tracekitd.config import Config
from tracekitd.log import say

LOOK_SECS = 1.0
PART_BYTES = 128 << 20  # of segments that are sealed at once
MAX_PAUSE_SECS = 300.0
WAIT_SECS = 30.0
NICE = 10


class Roller:
    """Rolls over, archives and removes, until `stop`.

    Args:
        spool: that others write.
        config: how often, how much, and where to.
    """

    def __init__(self, spool: SpoolWriter, config: Config) -> None:
        self._spool, self._config = spool, config
        self._born: dict[str, float] = {}  # parts that are here, on the monotonic clock
        self._ended = threading.Event()
        self._archive = None if config.archive is None else Address.of(config.archive)
        self._pause, self._next_try, self._next_part = 0.0, 0.0, 0.0
        self._refused = ""
        self._thread = threading.Thread(target=self._run, name="tracekitd-roller", daemon=True)
        self._thread.start()

    def keep(self, config: Config) -> None:
        """Keep parts for as long as, and as many as, these settings say."""
        self._config = config

    def stop(self) -> None:
        """End; what is being sealed or stored is finished first."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)
        while not self._ended.wait(LOOK_SECS):
            try:
                self._spool.roll()
                self._seal()
                self._store()
                self._remove_old()
                if not self._pause and time.monotonic() >= self._next_part:
                    self._refused = ""  # nothing that was refused waits for its next try
            except (TracekitError, OSError) as error:
                self._tell(str(error))

    def _tell(self, text: str) -> None:
        if text != self._refused:
            self._refused = text
            say(text)

    def _seal(self) -> None:
        """Seal the oldest segments that are not written any more, as many as fit into one part."""
        names: list[str] = []
        size = 0
        for name, length in sorted(self._spool.whole().items(), key=lambda pair: (len(pair[0]), pair[0])):
            if names and size + length > PART_BYTES:
                break
            names.append(name)
            size += length
        if not names or time.monotonic() < self._next_part:
            return
        self._next_part = time.monotonic() + WAIT_SECS  # for segments that must wait, or cannot be read
        if self._spool.make_part(names) is not None:
            self._next_part = 0.0

    def _store(self) -> None:
        if self._archive is None or time.monotonic() < self._next_try:
            return
        for name, part in self._spool.parts().items():
            if part.archived or self._ended.is_set():
                continue
            address = self._archive.below(f"{self._spool.nonce[:12]}-{name}")
            try:
                Store(address).upload(self._spool.folder / name)
            except (TracekitError, OSError):
                self._pause = min(max(2 * self._pause, LOOK_SECS), MAX_PAUSE_SECS)
                self._next_try = time.monotonic() + self._pause
                raise
            self._pause = 0.0
            self._spool.change_part(name, archived=address.url)

    def _remove_old(self) -> None:
        """Remove what is in the archive and too old, or too much, for here."""
        here = {name: part for name, part in self._spool.parts().items() if part.here}
        size = sum(part.bytes for part in here.values())
        self._born = {name: self._born[name] if name in self._born else _birth(part) for name, part in here.items()}
        config = self._config
        for name, part in here.items():
            is_old = 0 < config.keep_secs < time.monotonic() - self._born[name]
            if not (is_old or 0 < config.keep_bytes < size):
                return  # those behind it are younger
            if not part.archived:
                raise OutputError(f"{name} is too old, or the spool too large, but it is not in the archive: it stays")
            self._spool.change_part(name, here=False)
            size -= part.bytes


def _birth(part: Part) -> float:
    """Return when a part was made, on the monotonic clock: the wall clock, which may jump, is asked just once."""
    return time.monotonic() - max(0.0, (time.time_ns() - part.made_ns) / 1e9)
