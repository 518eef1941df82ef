"""Keys and values of a run of positions, kept so that what follows need not run them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # replay names spans where torch may not be installed
    import torch
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class KV:
    """Keys and values that some weights computed for positions 0..n of one sequence.

    Attributes:
        layers: a pair (keys, values) for each layer, [H_kv, n, D] each, the keys as attention takes them: rotated.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]

    @property
    def length(self) -> int:
        """n, the number of positions."""
        return int(self.layers[0][0].shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors hold."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)

    def truncated(self, length: int) -> KV:
        """Return what belongs to positions 0..length, as views."""
        return KV(tuple((keys[:, :length], values[:, :length]) for keys, values in self.layers))

    @classmethod
    def join(cls, parts: Sequence[KV]) -> KV:
        """Return the KV of consecutive runs of positions as one."""
        return (
            parts[0]
            if len(parts) == 1
            else cls(tuple(_join(layer) for layer in zip(*(p.layers for p in parts), strict=True)))
        )

    def to(self, device: torch.device | str) -> KV:
        """Return the same on another device."""
        return KV(tuple((keys.to(device), values.to(device)) for keys, values in self.layers))


def _join(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    import torch

    like = parts[-1][0]
    keys, values = (torch.cat([part[i].to(like) for part in parts], dim=1) for i in (0, 1))
    return keys, values
