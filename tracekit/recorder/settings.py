"""What the recorder is told, by environment variables or by `tracekit.toml` in the job's working directory.

The file has lines of the form `key = "value"`; a variable wins.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from tracekit.rpc.credentials import Access

# whose logprobs are recorded: those the client asked for; every token's; every token's, raw and processed
LOGPROBS = ("client", "engine", "both")


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
    """`TRACEKIT_PROBE` or `probe`: the folder for states of the first few requests, or None: then nothing is probed."""
    return _setting("TRACEKIT_PROBE", "probe") or None


def run_name() -> str | None:
    """`TRACEKIT_RUN` or `run`: the caller's name of the run, or None where nobody named one."""
    return _setting("TRACEKIT_RUN", "run") or None


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
