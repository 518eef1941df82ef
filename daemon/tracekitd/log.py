"""What the daemon says, on stderr: a line of text, or of JSON, for each thing that happened."""

from __future__ import annotations

import contextlib
import json
import sys
import time

from tracekit.plain import one_line

as_json = False


def say(text: str) -> None:
    """Say one line; where the log cannot be written, on a full disk say, nothing else must fail for it."""
    line = one_line(f"tracekitd: {text}")
    if as_json:
        line = json.dumps({"time": round(time.time(), 3), "program": "tracekitd", "message": text})
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)
