"""How GGML stores values in blocks, and how to get them back as float32.

The layouts are those of ggml's `ggml-quants.c`. Each decoder takes blocks [num_blocks, bytes_per_block] of u1 and
returns [num_blocks, values_per_block] of f4. numpy is imported inside the functions, as everywhere in this package.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

BLOCK = 32  # values that share a scale in Q4_1, Q5_0 and Q8_0
SUPER_BLOCK = 256  # values in a block of Q4_K and Q6_K


def decode_f32(raw: Any) -> Any:
    """F32: the values themselves."""
    return raw.view("<f4").copy()


def decode_f16(raw: Any) -> Any:
    """F16: the values in half precision."""
    return raw.view("<f2").astype("<f4")


def decode_q4_1(raw: Any) -> Any:
    """Q4_1: scale and minimum in f16, then 16 bytes; low nibbles are values 0 to 15, high ones 16 to 31."""
    return _nibbles(raw[:, 4:]).astype("<f4") * _half(raw, 0) + _half(raw, 2)


def decode_q5_0(raw: Any) -> Any:
    """Q5_0: a scale in f16, 32 fifth bits, then nibbles as in Q4_1; the values are signed around 16."""
    import numpy as np

    fifth = np.unpackbits(raw[:, 2:6], axis=1, bitorder="little")
    return ((_nibbles(raw[:, 6:]) | fifth << 4).astype("<f4") - 16) * _half(raw, 0)


def decode_q8_0(raw: Any) -> Any:
    """Q8_0: a scale in f16, then 32 signed bytes."""
    return raw[:, 2:].copy().view("i1").astype("<f4") * _half(raw, 0)


def decode_q4_k(raw: Any) -> Any:
    """Q4_K: two f16, eight scales and eight minima of 6 bits each, then 8 times 32 nibbles.

    The first four scales and minima are the low 6 bits of a byte each; of the others a nibble each lies in the last
    four bytes, and their upper two bits are what the first eight bytes have left.
    """
    import numpy as np

    scale_bytes, minimum_bytes, nibbles = raw[:, 4:8], raw[:, 8:12], raw[:, 12:16]
    scales = np.concatenate([scale_bytes & 0x3F, nibbles & 0x0F | scale_bytes >> 2 & 0x30], axis=1)
    minima = np.concatenate([minimum_bytes & 0x3F, nibbles >> 4 | minimum_bytes >> 2 & 0x30], axis=1)
    pairs = raw[:, 16:].reshape(-1, 4, 32)
    values = np.stack([pairs & 0x0F, pairs >> 4], axis=2).reshape(-1, 8, 32).astype("<f4")
    scale, minimum = _half(raw, 0) * scales, _half(raw, 2) * minima
    return (values * scale[:, :, None] - minimum[:, :, None]).reshape(-1, SUPER_BLOCK)


def decode_q6_k(raw: Any) -> Any:
    """Q6_K: 256 nibbles, 256 times two upper bits, sixteen signed scales, and an f16; signed around 32.

    Each half of a block has 64 bytes of nibbles (the low ones first) and 32 bytes of upper bits (the lowest first).
    """
    import numpy as np

    low, high = raw[:, :128].reshape(-1, 2, 64), raw[:, 128:192].reshape(-1, 2, 32)
    nibbles = np.concatenate([low & 0x0F, low >> 4], axis=2)
    upper = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=2)
    values = (nibbles | upper << 4).reshape(-1, 16, 16).astype("<f4") - 32
    scale = raw[:, 192:208].copy().view("i1").astype("<f4") * _half(raw, 208)
    return (values * scale[:, :, None]).reshape(-1, SUPER_BLOCK)


def _half(raw: Any, at: int) -> Any:
    """[num_blocks, 1]: the f16 at a byte of each block."""
    return raw[:, at : at + 2].copy().view("<f2").astype("<f4")


def _nibbles(raw: Any) -> Any:
    """Low nibbles, then high ones, of each row."""
    import numpy as np

    return np.concatenate([raw & 0x0F, raw >> 4], axis=1)


# GGML type -> (bytes in a block, values in a block, decoder)
DECODERS: dict[int, tuple[int, int, Callable[[Any], Any]]] = {
    0: (4, 1, decode_f32),
    1: (2, 1, decode_f16),
    3: (4 + BLOCK // 2, BLOCK, decode_q4_1),
    6: (6 + BLOCK // 2, BLOCK, decode_q5_0),
    8: (2 + BLOCK, BLOCK, decode_q8_0),
    12: (16 + SUPER_BLOCK // 2, SUPER_BLOCK, decode_q4_k),
    14: (210, SUPER_BLOCK, decode_q6_k),
}
