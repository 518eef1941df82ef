"""``tracekit doctor --live``: where the engine's counters come from, and what was compared with them as text."""

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tracekit.errors import DaemonError, MetricsError, TracekitError

READ_SECS = 10.0
MAX_BYTES = 64 << 20


def reader(source: str) -> Callable[[], str]:
    """Return what reads the metrics of a URL, or of a file that holds their text."""
    if source.startswith(("http://", "https://")):
        return lambda: _fetch(source)
    if "://" in source:
        raise MetricsError(f"metrics come from an http:// URL or a file: {source}")
    return lambda: _load(Path(source))


def _fetch(url: str) -> str:
    # a metrics endpoint is beside the engine: no proxy of the environment stands between
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=READ_SECS) as answer:
            return str(answer.read(MAX_BYTES).decode())
    except urllib.error.HTTPError as error:
        raise MetricsError(f"the metrics answer with status {error.code}: {url}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise MetricsError(f"the metrics do not answer ({reason or type(error).__name__}): {url}") from None


def _load(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise MetricsError(f"the metrics cannot be read: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise MetricsError(f"the metrics are not text: {path}") from None


def flusher(address: str | None, trace: str) -> Callable[[], None]:
    """Return what asks the daemon at ``address`` to write what it has; nothing without one, or if it has another spool.

    Raises:
        DaemonError: nobody answers there.
    """
    if address is None:
        return lambda: None
    from tracekit.rpc.client import ControlClient

    client = ControlClient(address)
    spool = Path(client.describe().spool)
    if not Path(trace).exists() or not spool.samefile(trace):
        raise DaemonError(f"the daemon at {address} writes another spool than {trace}: {spool}")

    def flush() -> None:
        try:
            client.flush()
        except TracekitError:
            pass  # it may end while we look; what is on the disk is compared

    return flush


def as_text(facts: dict[str, Any]) -> list[str]:
    """Return the lines for the terminal."""
    state = "" if facts["being_written"] else " (the trace is not being written any more)"
    lines = ["", f"counters of the engine, from {facts['source']}{state}"]
    for engine in facts["engines"]:
        label = f', engine="{engine["label"]}" in the metrics' if engine["label"] else ""
        moving = "; the counters moved, so values lie between two readings" if engine["moving"] else ""
        lines.append(f"engine {engine['engine']}{label}{moving}")
        for row in engine["compared"]:
            mark = {"agrees": "  ", "violated": "! "}.get(row["state"], "? ")
            why = f"  ({row['why']})" if row["why"] else ""
            state = "" if row["state"] == "agrees" else f"  {row['state'].upper()}"
            trace, counter = _span(row["low"], row["high"]), _span(row["before"], row["after"])
            lines.append(f"  {mark}{row['name']:<24}trace {trace:<16}counter {counter}{state}{why}")
        for name, why in engine["not_compared"].items():
            lines.append(f"    {name:<24}not compared: {why}")
    return lines


def _span(low: int, high: int | None) -> str:
    if high is None:
        return f"{low:,} or more"
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
