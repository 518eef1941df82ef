"""Progress on stderr: one line that is rewritten with the time gone by on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType
from typing import TextIO


class Talk:
    """A progress callable: `with Talk() as talk: ensure("v1", talk)`. On a terminal a clock shows that it lives."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._live = self._stream.isatty()
        self._text = ""
        self._begin = time.monotonic()
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tick, name="tracekit-talk", daemon=True)

    def __enter__(self) -> Talk:
        if self._live:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._done.set()
        if self._live:
            self._thread.join()
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def __call__(self, text: str) -> None:
        """Say one line."""
        with self._lock:
            self._text = text
            if not self._live:
                print(text, file=self._stream, flush=True)

    def _tick(self) -> None:
        while not self._done.wait(0.25):
            with self._lock:
                if not self._text:
                    continue
                line = f"{time.monotonic() - self._begin:4.0f} s  {self._text}"
                self._stream.write("\r" + line[: shutil.get_terminal_size().columns - 1] + "\x1b[K")
                self._stream.flush()
