"""Follow the engines of a daemon until it ends: on a terminal a table that is drawn anew, elsewhere lines."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from tracekit.errors import DaemonError
from tracekit.plain import plain
from tracekit.report.follow import Seen, line, table

if TYPE_CHECKING:
    from rich.console import Console

    from tracekit.rpc.client import ControlClient
    from tracekit.rpc.messages import EngineInfo

LOOK_SECS = 1.0  # between two looks on a terminal
LINE_SECS = 10.0  # between two lines elsewhere
RATE_LOOKS = 6  # that tokens a second are taken over


class Looks:
    """Looks at a daemon's engines, and knows how fast they are from the looks before."""

    def __init__(self, client: ControlClient) -> None:
        self._client = client
        self._before: dict[int, deque[tuple[float, int]]] = {}

    def look(self) -> list[Seen]:
        """Return the engines as they are.

        Raises:
            DaemonError: the daemon does not answer.
        """
        return [self._seen(info) for info in self._client.list_engines(live=True) if not info.trainer]

    def _seen(self, info: EngineInfo) -> Seen:
        now, count = time.monotonic(), info.totals.produced.get("tokens", 0)
        before = self._before.setdefault(info.engine, deque(maxlen=RATE_LOOKS))
        rate = max(count - before[0][1], 0) / max(now - before[0][0], 1e-3) if before else None
        before.append((now, count))
        state = "ended" if info.ended else "recording" if info.open else "away"
        lost, live = sum(info.totals.lost.values()), info.live
        if info.ended or not info.HasField("live"):
            return Seen(info.engine, state, count, rate, lost)
        compared = live.compared_tokens > 0
        return Seen(
            engine=info.engine,
            state=state,
            num_tokens=count,
            tokens_per_sec=rate,
            num_lost=lost,
            engine_step=live.engine_step,
            weight_version=live.weight_version,
            num_running=live.num_requests,
            num_waiting=live.num_waiting,
            kv_usage=live.kv_usage,
            mismatch_kl=live.mismatch_kl if compared else None,
            ratio_mean=live.ratio_mean if compared else None,
        )


def follow(address: str, stop: threading.Event | None = None, said: int | None = None) -> None:
    """Show the engines of the daemon at `address` on stderr until it ends, we are interrupted, or `stop` is set.

    Args:
        address: of the daemon.
        stop: is set when it is enough.
        said: a descriptor to read from what a job says, on a terminal.

    Raises:
        DaemonError: nobody answers there to begin with.
    """
    from tracekit.rpc.client import ControlClient

    stop = stop or threading.Event()
    with ControlClient(address) as client:
        looks = Looks(client)
        seen = looks.look()
        try:
            if os.isatty(2):
                _draw(looks, seen, address, stop, said)
            else:
                _print(looks, seen, stop)
        except DaemonError:
            pass  # it has ended
        except KeyboardInterrupt:
            pass


@contextmanager
def followed(address: str) -> Iterator[int | None]:
    """Follow beside what the block does; on a terminal it is to write what it says into the descriptor that is given.

    See `follow`; that shows its lines above the table, which they would break otherwise.
    """
    stop = threading.Event()
    ends = os.pipe() if os.isatty(2) else None
    thread = threading.Thread(
        target=follow, args=(address, stop, ends and ends[0]), name="tracekit-follow", daemon=True
    )
    thread.start()
    try:
        yield ends and ends[1]
    finally:
        if ends:
            os.close(ends[1])
        stop.set()
        thread.join(5)


def _draw(looks: Looks, seen: list[Seen], address: str, stop: threading.Event, said: int | None) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    title = f"tracekit follows {plain(address)}"
    with Live(table(seen, title), console=console, auto_refresh=False) as live:
        reader = threading.Thread(target=_repeat, args=(said, console), daemon=True)
        if said is not None:
            reader.start()
        while not stop.wait(LOOK_SECS):
            live.update(table(looks.look(), title), refresh=True)
        if said is not None:
            reader.join(2)  # what it said last
        live.update(table(looks.look(), title), refresh=True)


def _repeat(said: int, console: Console) -> None:
    """Print above the table what a job says."""
    from rich.text import Text

    with os.fdopen(said, errors="replace") as lines:
        for text in lines:
            console.print(Text.from_ansi(text.rstrip()), soft_wrap=True)


def _print(looks: Looks, seen: list[Seen], stop: threading.Event) -> None:
    told: list[Seen] = []
    while True:
        for one in seen:
            if one not in told:
                click.echo(line(one), err=True)
        told = seen
        if stop.is_set():
            return
        stop.wait(LINE_SECS)
        seen = looks.look()
