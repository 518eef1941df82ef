"""How a body's linears are computed where there is a choice.

Bfloat16 ones on a CPU: torch's own, or float32 products of the same numbers, whichever this machine does faster. A
product of two bfloat16 numbers is exact in float32, so the two differ by no more than the order of their sums, which is
gone in nearly all results once they are rounded to bfloat16. A CPU without bfloat16 units emulates them slowly. The
attention of packed sequences goes the same way.

Float32 ones: as ever, or each sum in two halves, which shows what the order of float32 sums does to the results.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

NATIVE = "bfloat16"
THROUGH_FLOAT32 = "bfloat16 products through float32"
IN_HALVES = "float32, sums in halves"

_PROBE_ROWS = 256
_PROBE_ROUNDS = 5
# Float32 unless the other is clearly faster: machines of one type, and runs on one machine, have to choose alike.
_CLEARLY = 1.3
_KEPT_BYTES = 4 << 30  # bound on the float32 copies of a body's weights; beyond it, they are made for each call


def settle_arithmetic(body: nn.Module, arithmetic: str | None = None) -> str:
    """Choose how a body's bfloat16 linears are computed, and make them so.

    Args:
        body: changed in place where float32 is chosen.
        arithmetic: `IN_HALVES`, or `NATIVE` or `THROUGH_FLOAT32`, of which the default is what a probe of this machine
            found to be faster. A body that has no bfloat16 linears on a CPU has nothing to choose between these.

    Returns:
        What the body computes in: the choice, or its dtype where there was none.

    Raises:
        ValueError: the arithmetic is unknown.
    """
    if arithmetic not in (None, NATIVE, THROUGH_FLOAT32, IN_HALVES):
        raise ValueError(f"unknown arithmetic {arithmetic!r}: use {NATIVE!r}, {THROUGH_FLOAT32!r} or {IN_HALVES!r}")
    if arithmetic == IN_HALVES:
        for name, module in [*body.named_modules()]:
            if type(module) is nn.Linear and module.weight.dtype == torch.float32:
                body.set_submodule(name, _InHalves(module))
        return IN_HALVES
    linears = {name: module for name, module in body.named_modules() if _is_slow(module)}
    if not linears:
        return str(next(body.parameters()).dtype).removeprefix("torch.")
    largest = max((linear.weight.shape for linear in linears.values()), key=lambda shape: shape.numel())
    chosen = arithmetic or _faster(largest[0], largest[1])
    if chosen == THROUGH_FLOAT32:
        keep = 4 * sum(linear.weight.numel() for linear in linears.values()) <= _KEPT_BYTES
        for name, linear in linears.items():
            body.set_submodule(name, _ThroughFloat32(linear, keep=keep))
    return chosen


def is_through_float32(body: nn.Module) -> bool:
    """Whether a body's bfloat16 linears, and so its attention too, are computed in float32."""
    return any(isinstance(module, _ThroughFloat32) for module in body.modules())


def bfloat16_arithmetic(body: nn.Module) -> str | None:
    """Return what bfloat16 loads of a body, which itself may be of any dtype, are to compute in, on all workers alike.

    None where it has no linears on a CPU, so that there is nothing to agree on.
    """
    ours = (module for module in body.modules() if type(module) in (nn.Linear, _ThroughFloat32, _InHalves))
    shapes = [module.weight.shape for module in ours if module.weight.device.type == "cpu"]
    if not shapes:
        return None
    num_out, num_in = max(shapes, key=lambda shape: shape.numel())
    return _faster(num_out, num_in)


def _is_slow(module: nn.Module) -> bool:
    # Not a subclass: what its forward does beyond a product is not known.
    return type(module) is nn.Linear and module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu"


class _ThroughFloat32(nn.Module):
    """A bfloat16 linear whose products and sums are float32 ones."""

    def __init__(self, linear: nn.Linear, *, keep: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._kept = linear.weight.detach().float() if keep else None

    def forward(self, hidden: Tensor) -> Tensor:
        weight = self.weight.float() if self._kept is None else self._kept
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(hidden.float(), weight, bias).to(hidden.dtype)


class _InHalves(nn.Module):
    """A linear that adds up the first half of its inputs, the second half, and then the two."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        half = self.in_features // 2
        first = nn.functional.linear(hidden[..., :half], self.weight[:, :half])
        return first + nn.functional.linear(hidden[..., half:], self.weight[:, half:], self.bias)


@functools.cache
def _faster(num_out: int, num_in: int) -> str:
    """Time both on the shape of a body's largest linear; once per process, so that a run does not change its mind."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(_PROBE_ROWS, num_in, generator=generator).bfloat16()
    linear = nn.Linear(num_in, num_out, bias=False, dtype=torch.bfloat16)
    linears = {NATIVE: linear, THROUGH_FLOAT32: _ThroughFloat32(linear, keep=True)}
    seconds = {name: min(_seconds(module, hidden) for _ in range(_PROBE_ROUNDS)) for name, module in linears.items()}
    return NATIVE if seconds[NATIVE] * _CLEARLY < seconds[THROUGH_FLOAT32] else THROUGH_FLOAT32


def _seconds(module: Callable[[Tensor], Tensor], hidden: Tensor) -> float:
    with torch.inference_mode():
        begin = time.perf_counter()
        module(hidden)
        return time.perf_counter() - begin
