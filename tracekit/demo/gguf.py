"""Read a GGUF file: its metadata, and its tensors dequantised to float32.

Only the storage types that our models use, and the plain ones, are known (`tracekit/demo/blocks.py`). numpy is imported
inside the functions, as everywhere in this package.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracekit.demo.blocks import DECODERS
from tracekit.errors import ModelError

if TYPE_CHECKING:
    import numpy as np

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", BOOL: "?", 10: "Q", 11: "q", 12: "d"}
_BLOCKS_AT_ONCE = 1 << 16  # of intermediate values, which an embedding of 262,144 rows has gigabytes of


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in the file.

    Example:
        TensorInfo("blk.0.attn_q.weight", (576, 576), 3, 1572864)
    """

    name: str
    shape: tuple[int, ...]
    """Row-major: the last dimension is contiguous (GGUF itself lists dimensions the other way round)."""
    kind: int
    """GGML's number of the storage type."""
    offset: int
    """Bytes from the start of the file."""


class GgufFile:
    """A GGUF file, version 2 or 3: `metadata` and `tensors` are read at once, values on `read`.

    Raises:
        ModelError: not a GGUF file, or one that ends early.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        try:
            self.metadata, self.tensors = self._header()
        except (struct.error, KeyError, UnicodeDecodeError) as error:
            raise ModelError(f"damaged GGUF file ({error!r}): {path}") from None

    def _take(self, layout: str) -> Any:
        layout = "<" + layout
        (value,) = struct.unpack_from(layout, self._data, self._at)
        self._at += struct.calcsize(layout)
        return value

    def _string(self) -> str:
        length = self._take("Q")
        text = self._data[self._at : self._at + length].decode()
        self._at += length
        return text

    def _value(self, kind: int) -> Any:
        if kind == STRING:
            return self._string()
        if kind == ARRAY:
            inner, count = self._take("I"), self._take("Q")
            return [self._value(inner) for _ in range(count)]
        return self._take(SCALARS[kind])

    def _header(self) -> tuple[dict[str, Any], dict[str, TensorInfo]]:
        if self._data[:4] != b"GGUF":
            raise ModelError(f"not a GGUF file: {self.path}")
        self._at = 4
        version, num_tensors, num_entries = self._take("I"), self._take("Q"), self._take("Q")
        if version not in (2, 3):
            raise ModelError(f"GGUF version {version} is not supported: {self.path}")
        metadata = {}
        for _ in range(num_entries):
            key = self._string()
            metadata[key] = self._value(self._take("I"))
        found = []
        for _ in range(num_tensors):
            name, num_dims = self._string(), self._take("I")
            shape = tuple(reversed([self._take("Q") for _ in range(num_dims)]))
            found.append(TensorInfo(name, shape, self._take("I"), self._take("Q")))
        alignment = metadata.get("general.alignment", 32)
        begin = -(-self._at // alignment) * alignment
        return metadata, {t.name: TensorInfo(t.name, t.shape, t.kind, begin + t.offset) for t in found}

    def names(self) -> Iterator[str]:
        """Return the names of all tensors, in the order of the file."""
        return iter(self.tensors)

    def read(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return one tensor as float32 in its row-major shape.

        Raises:
            ModelError: a storage type that is not known here, or a file that ends early.
        """
        import numpy as np

        info = self.tensors[name]
        if info.kind not in DECODERS:
            raise ModelError(f"tensor {name} has the GGML type {info.kind}, which is not supported: {self.path}")
        num_values = int(np.prod(info.shape))
        bytes_per_block, values_per_block, decode = DECODERS[info.kind]
        size = num_values // values_per_block * bytes_per_block
        if info.offset + size > len(self._data):
            raise ModelError(f"tensor {name} lies beyond the end of the file: {self.path}")
        raw = np.frombuffer(self._data, np.uint8, size, info.offset).reshape(-1, bytes_per_block)
        values = np.empty((len(raw), values_per_block), np.float32)
        for first in range(0, len(raw), _BLOCKS_AT_ONCE):
            chunk = slice(first, first + _BLOCKS_AT_ONCE)
            values[chunk] = decode(raw[chunk])
        return values.reshape(info.shape)
