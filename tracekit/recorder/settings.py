"""Where the daemon is: ``TRACEKIT_DAEMON``, or ``daemon = "unix:/path"`` in the working directory's tracekit.toml."""

import os
import re
from pathlib import Path


def daemon_address() -> str | None:
    """The address the recorder should send to, or None: then the recorder stays dormant."""
    address = os.environ.get("TRACEKIT_DAEMON")
    if address is not None:
        return address or None
    try:
        text = Path("tracekit.toml").read_text(encoding="utf-8")
    except OSError:
        return None
    # one key of one line: Python 3.10 engines have no tomllib
    found = re.search(r"""^\s*daemon\s*=\s*["']([^"']+)["']\s*(#.*)?$""", text, re.MULTILINE)
    return found.group(1) if found else None
