"""Where an engine's counters come from: vLLM's metrics endpoint, or a file of its text."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tracekit.errors import MetricsError

READ_SECS = 10.0
MAX_BYTES = 64 << 20


def reader(source: str) -> Callable[[], str]:
    """Return what reads the metrics of a URL, or of a file that holds their text.

    Raises:
        MetricsError: neither; what is returned raises it where the metrics cannot be read.
    """
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
