"""The address of a daemon: `unix:` and the path of its socket, taken letter by letter, or `grpcs://HOST:PORT`."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote


def socket_of(address: str) -> Path | None:
    """Return the path of a `unix:PATH` or `unix://PATH` address as it was given; None for other addresses."""
    path = address.removeprefix("unix:").removeprefix("//")
    return Path(path) if address.startswith("unix:") and path else None


def strangers_socket(path: Path) -> bool:
    """Whether somebody else made what lies at the path: whoever listens there gets all that is sent."""
    try:
        return os.stat(path).st_uid not in (os.geteuid(), 0)
    except OSError:
        return False  # it is gone


def tcp_of(address: str) -> str | None:
    """Return host and port, as gRPC takes them, of a `grpcs://HOST:PORT` address; None for other addresses."""
    found = re.fullmatch(r"grpcs://((?:\[[0-9A-Fa-f:.]+\]|[^\s:/\[\],]+):([0-9]{1,5}))/?", address)
    return found.group(1) if found and int(found.group(2)) < 1 << 16 else None  # gRPC takes the rest of the division


def target_of(address: str) -> str:
    """Return what gRPC is to be told: it reads a URI, where a percent sign, `?` and `#` would mean something."""
    path = socket_of(address)
    return address if path is None else f"unix:{quote(os.fsencode(path))}"
