"""How much memory a batch takes when it is decoded, read off its frame: a few bytes of zstd can claim gigabytes.

Arrow's metadata is a flatbuffer; only the few fields that tell sizes are read here, by hand. Format: Message.fbs and
File.fbs of Apache Arrow.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

FLOOR_BYTES = 128 << 20
MAX_RATIO = 256  # of decoded to stored bytes; a real batch has about 10

_HEADER, _BATCHES = 2, 3  # fields of Message and of Footer
_BUFFERS, _COMPRESSION = 2, 3  # fields of RecordBatch

Read = Callable[[int, int], bytes]  # offset, length


def too_heavy(read: Read, offset: int, length: int) -> bool:
    """Say whether the message at `offset` claims more memory than a batch of `length` bytes can need.

    Raises:
        ValueError: it is not a message of Arrow.
    """
    try:
        prefix = read(offset, 8)
        body = offset + 8 + _u4(prefix, 4)
        table = _root(read(offset + 8, _u4(prefix, 4)))
        batch = table.table(_HEADER)
        if batch is None:
            raise ValueError("a message without a header")
        sizes = list(batch.structs(_BUFFERS, 16))
        compressed = batch.table(_COMPRESSION) is not None
        total = 0
        for buffer in sizes:
            start, size = struct.unpack("<qq", buffer)
            if compressed and size >= 8:
                claimed = struct.unpack("<q", read(body + start, 8))[0]
                size = size if claimed < 0 else claimed
            total += max(size, 0)
    except (struct.error, IndexError) as error:
        raise ValueError(f"not a message of Arrow: {error}") from None
    return total > max(FLOOR_BYTES, MAX_RATIO * length)


def blocks(read: Read, size: int) -> list[tuple[int, int]]:
    """Return offset and length of every batch that the footer of an Arrow file names.

    Raises:
        ValueError: the footer is not one.
    """
    try:
        length = _u4(read(size - 10, 4), 0)
        if not 0 < length <= size - 18:
            raise ValueError("a footer as long as its file")
        footer = _root(read(size - 10 - length, length))
        found = [struct.unpack("<qi4xq", block) for block in footer.structs(_BATCHES, 24)]
    except (struct.error, IndexError) as error:
        raise ValueError(f"not a footer of Arrow: {error}") from None
    return [(offset, metadata + body) for offset, metadata, body in found]


class _Table:
    """A table in a flatbuffer."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._fields = at - struct.unpack_from("<i", data, at)[0]
        if not 0 <= at < len(data) or not 0 <= self._fields < len(data):
            raise IndexError("a table outside its buffer")

    def _place(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry >= struct.unpack_from("<H", self._data, self._fields)[0]:
            return None
        offset: int = struct.unpack_from("<H", self._data, self._fields + entry)[0]
        return self._at + offset if offset else None

    def table(self, field: int) -> _Table | None:
        place = self._place(field)
        return None if place is None else _Table(self._data, place + _u4(self._data, place))

    def structs(self, field: int, size: int) -> Iterator[bytes]:
        place = self._place(field)
        if place is None:
            return
        vector = place + _u4(self._data, place)
        count = _u4(self._data, vector)
        if vector + 4 + count * size > len(self._data):
            raise IndexError("a vector outside its buffer")
        for index in range(count):
            yield self._data[vector + 4 + index * size : vector + 4 + (index + 1) * size]


def _root(data: bytes) -> _Table:
    return _Table(data, _u4(data, 0))


def _u4(data: bytes, at: int) -> int:
    number: int = struct.unpack_from("<I", data, at)[0]
    return number
