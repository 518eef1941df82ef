"""What the recorder is told, by environment variables or by `tracekit.toml` in the job's working directory.

The file has lines of the form `key = "value"`; a variable wins.
"""

from __future__ import annotations

import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from tracekit.cache import cache_dir
from tracekit.rpc.credentials import Access

# whose logprobs are recorded: those the client asked for; every token's; every token's, raw and processed
LOGPROBS = ("client", "engine", "both")
MIN_WINDOW = 64 << 10


class Options(NamedTuple):
    """How one engine is recorded.

    Example:
        Options("unix:/run/user/1000/tracekit/d.sock", Access(), logprobs="both", sample=0.1, lossless=True)
    """

    address: str
    access: Access
    logprobs: str = "client"  # one of `LOGPROBS`
    sample: float = 1.0  # share of requests that are recorded
    probe: str | None = None  # folder for states of the first few requests; None: nothing is probed
    lossless: bool | None = None  # None: as the process was told when it was started
    max_stall_ms: int | None = None  # the same; 0: for ever
    redact: str | None = None  # file with the key to redact with; one that the process was told goes first
    redacted: str | None = None  # the name of the key by whose hashes ids and texts are recorded

    def told(self) -> dict[str, Any]:
        """Return what a trace says of it."""
        told = {"logprobs": self.logprobs, "sample": self.sample, "redacted": self.redacted}
        return {**told, "probe": self.probe is not None, "lossless": self.waits()}

    def asks_workers(self) -> bool:
        """Whether workers do something for it, which they must be told of."""
        return self.logprobs != "client" or self.probe is not None

    def key_file(self) -> str | None:
        """Return the file with the key by which prompts and tokens are hashed, or None."""
        return redact_key_file() or self.redact

    def waits(self) -> bool:
        """Whether the engine waits where rows would be dropped."""
        return is_lossless() if self.lossless is None else self.lossless

    def stall_secs(self) -> float:
        """How long it waits at once."""
        told_ms = max_stall_ms() if self.max_stall_ms is None else self.max_stall_ms
        return told_ms / 1000 or math.inf


def options() -> Options | None:
    """What this process was told when it was started; None where no daemon is named."""
    address = daemon_address()
    return None if address is None else Options(address, access(), logprobs_option(), probe=probe_folder())


def attach_folder() -> Path | None:
    """`TRACEKIT_ATTACH` or `attach`: the folder where engines take orders, in the cache unless told; `off`: nowhere.

    Nor is one where none can be found, in a container whose user nobody knows for one.
    """
    told = _setting("TRACEKIT_ATTACH", "attach")
    try:
        return None if told == "off" else Path(told).absolute() if told else cache_dir() / "attach"
    except (OSError, RuntimeError):  # the working directory is gone; nobody knows where the user's home is
        return None


def daemon_address() -> str | None:
    """`TRACEKIT_DAEMON` or `daemon`: where the recorder should send to, or None: then it stays dormant."""
    return _setting("TRACEKIT_DAEMON", "daemon") or None


def access() -> Access:
    """`TRACEKIT_TOKEN_FILE` or `token_file`, and so on: what a daemon at a `grpcs://` address wants to see."""
    return Access(*(_setting(f"TRACEKIT_{name.upper()}", name) or None for name in Access._fields))


def logprobs_option() -> str:
    """`TRACEKIT_LOGPROBS` or `logprobs`: one of `LOGPROBS`; `client` where nothing or nonsense is said."""
    value = _setting("TRACEKIT_LOGPROBS", "logprobs")
    return value if value in LOGPROBS else "client"


def logprobs_complaint() -> str:
    """What is wrong with the logprobs option, in one sentence; empty where nothing is."""
    value = _setting("TRACEKIT_LOGPROBS", "logprobs")
    if not value or value in LOGPROBS:
        return ""
    return f"the logprobs option is one of {', '.join(LOGPROBS)}, not {value!r}; client is taken"


def probe_folder() -> str | None:
    """`TRACEKIT_PROBE` or `probe`: the folder for states of the first few requests, or None: then nothing is probed.

    Nothing is where prompts are redacted: states tell what they were.
    """
    return None if redact_key_file() else _setting("TRACEKIT_PROBE", "probe") or None


def redact_key_file() -> str | None:
    """`TRACEKIT_REDACT_KEY_FILE` or `redact_key_file`: the key by which prompts and tokens are hashed, or None."""
    return _setting("TRACEKIT_REDACT_KEY_FILE", "redact_key_file") or None


def is_lossless() -> bool:
    """`TRACEKIT_LOSSLESS` or `lossless`: whether the engine waits where rows would be dropped."""
    return (_setting("TRACEKIT_LOSSLESS", "lossless") or "0").lower() in ("1", "true", "yes", "on")


def max_stall_ms() -> int:
    """`TRACEKIT_MAX_STALL_MS` or `max_stall_ms`: how long it waits at once, a minute if not told; 0: for ever."""
    return _number("TRACEKIT_MAX_STALL_MS", "max_stall_ms", 60_000)


def window_bytes() -> int:
    """`TRACEKIT_WINDOW_BYTES` or `window_bytes`: what is kept for the daemon, 256 MiB unless told."""
    return max(_number("TRACEKIT_WINDOW_BYTES", "window_bytes", 256 << 20), MIN_WINDOW)


def run_name() -> str | None:
    """`TRACEKIT_RUN` or `run`: the caller's name of the run, or None where nobody named one."""
    return _setting("TRACEKIT_RUN", "run") or None


def _number(variable: str, key: str, default: int) -> int:
    """A whole number from 0; the default where nothing or nonsense is said."""
    value = _setting(variable, key) or ""
    return int(value) if re.fullmatch(r"[0-9]{1,15}", value) else default


def _setting(variable: str, key: str) -> str | None:
    value = os.environ.get(variable)
    if value is not None:
        return value
    try:
        text = Path("tracekit.toml").read_text(encoding="utf-8")
    except OSError:
        return None
    # one key of one line: Python 3.10 engines have no tomllib
    found = re.search(rf"""^\s*{key}\s*=\s*["']([^"']+)["']\s*(#.*)?$""", text, re.MULTILINE)
    return found.group(1) if found else None
