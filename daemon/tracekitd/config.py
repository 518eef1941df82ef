"""What a daemon is told at its start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Config:
    """One daemon.

    Example:
        Config(listen="unix:/run/user/1000/tracekit/d.sock", spool=Path("spool"), seal=Path("trace.arrow"))
    """

    listen: str  # unix:/path/to.sock
    spool: Path  # folder of the hot segments, created if need be
    seal: Path | None = None  # on shutdown, make this trace of the spool and remove the spool
    grace_secs: float = 10.0  # how long a shutdown waits for connected engines to finish
    attached: bool = False  # see `Daemon.hear`; signals are ignored
