"""What a trace must have before anything can be said of it."""

from __future__ import annotations

from tracekit.trace.reader import Trace


def lacking(trace: Trace) -> str | None:
    """Return in a few words what a trace does not have, so that nothing in it can be judged; None where it has all.

    A trace that is being written may still get it. Where rows are known to be lost, unfinished requests are no wonder.

    Example:
        lacking(open_trace("t.arrow")) == "no token was recorded"

    Raises:
        TraceCorruptError: a batch is not what was written.
    """
    if trace.live:
        return None
    if not trace.numbers:
        return "no engine was recorded"
    if not trace.rows("tokens"):
        return "no token was recorded"
    return "no request finished" if not trace.rows("finishes") and trace.complete else None
