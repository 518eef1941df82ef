"""Reads counters and trace again until they agree: rows are on their way for about a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tracekit.audit.live.compare import EngineReport, compare
from tracekit.audit.live.counters import read_counters
from tracekit.errors import EXIT_FAILED, EXIT_OK
from tracekit.trace.reader import Trace

SETTLE_SECS = 10.0
POLL_SECS = 0.3


@dataclass(frozen=True)
class LiveReport:
    """What `watch` found."""

    source: str
    being_written: bool
    engines: Sequence[EngineReport]

    @property
    def exit_code(self) -> int:
        """1 where the trace contradicts the counters, else 0."""
        return EXIT_FAILED if any(engine.violations for engine in self.engines) else EXIT_OK

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON types."""
        engines = [engine.to_dict() for engine in self.engines]
        return {"source": self.source, "being_written": self.being_written, "engines": engines}


def watch(
    source: str,
    read: Callable[[], str],
    open_trace: Callable[[], Trace],
    *,
    flush: Callable[[], None] = lambda: None,
    engine: int | None = None,
    timeout_secs: float = SETTLE_SECS,
) -> LiveReport:
    """Compare a trace with its engines' counters, both of which may move meanwhile.

    The counters are read first, then the trace until it has reached them, then the counters again: what the trace says
    must lie between the two.

    Args:
        source: what `read` reads, for the report.
        read: returns the metrics as text.
        open_trace: opens the trace as it is now.
        flush: asks the daemon to write what it has.
        engine: see `compare.compare`.
        timeout_secs: how long a trace may take to reach the counters.

    Raises:
        TracekitError: metrics or trace cannot be read, or do not belong together.
    """
    deadline = time.monotonic() + timeout_secs
    before = read_counters(read())
    while True:
        flush()
        trace = open_trace()
        report = LiveReport(source, trace.live, compare(trace, before, read_counters(read()), engine))
        # nothing more comes into a trace that nobody writes
        if report.exit_code == EXIT_OK or not trace.live or time.monotonic() >= deadline:
            return report
        time.sleep(POLL_SECS)
