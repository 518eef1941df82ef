"""Text of strangers on its way to a terminal: what would steer it is shown and not obeyed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, TextIO

from tracekit.errors import OutputError

# C0 but for line ends and tabs, DEL, C1, what turns the direction of writing around, and halves of characters;
# as JSON writes them, which is what most of our output is
_STEERING = [*range(0x20), 0x7F, *range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
_SHOWN: dict[int, Any] = {code: f"\\u{code:04x}" for code in _STEERING if chr(code) not in "\n\r\t"}
_SHOWN |= {code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)}


def plain(text: str) -> str:
    """Return a text without anything that steers a terminal."""
    return text.translate(_SHOWN)


def one_line(text: str) -> str:
    """Return the same without line ends, which are shown too: nobody may add a line to a log or a list."""
    return plain(text).replace("\n", "\\n").replace("\r", "\\r")


class ReaderGone(Exception):
    """Whoever read our output went away, as `head` does; no OSError, which click takes for its own."""


class PlainStream:
    """A text stream that writes plain text; in all else it is the stream behind it. None is one that was closed."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or open(os.devnull, "w", encoding="utf-8")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write a text, plain.

        Raises:
            ReaderGone: nobody reads it any more.
            OutputError: the system does not take it.
        """
        with _told():
            return self._stream.write(plain(text))

    def flush(self) -> None:
        """Write what waits; errors are those of `write`."""
        with _told():
            self._stream.flush()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise ReaderGone from None
    except OSError as error:
        raise OutputError(f"what was found cannot be written to standard output: {error.strerror}") from None
