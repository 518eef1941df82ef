"""What the daemon says, on stderr."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """Say one line; where the log cannot be written, on a full disk say, nothing else must fail for it."""
    with contextlib.suppress(OSError, ValueError):
        print(f"tracekitd: {text}", file=sys.stderr, flush=True)
