"""Attention over a packed row: each piece sees what it goes on from, and itself, and nothing else of the row.

Registered under names of its own with transformers' AttentionInterface. Its mask function makes no mask: it hands
the architecture's rule (causal, sliding, chunked) through to the attention, which asks it for the true positions of
a piece. See https://huggingface.co/docs/transformers/attention_interface.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tracekit.scoring.kv import KV
from tracekit.scoring.piecewise import attend, attend_by_hand

NAME = "tracekit_packed"
NAME_THROUGH_FLOAT32 = f"{NAME}_through_float32"
CURRENT: ContextVar[Pack] = ContextVar("pack")


@dataclass(frozen=True, eq=False)
class Placed:
    """A piece in a packed row: its rows, its first position, and what it goes on from, in the order of positions."""

    rows: slice
    start: int
    sources: tuple[slice | KV, ...]

    @property
    def stop(self) -> int:
        """One beyond its last position."""
        return self.start + int(self.rows.stop - self.rows.start)


@dataclass(eq=False)
class Pack:
    """One packed row on its way through the body, [1, L] tokens."""

    placed: list[Placed]
    keep: dict[int, slice]
    """Rows whose keys and values are to be kept, by a number of the caller's."""
    kept: dict[int, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    num_layers: int = 0
    """Layers whose attention ran so far."""
    masks: dict[tuple[Any, int, int], tuple[int, Tensor | None]] = field(default_factory=dict)

    def mask(self, rule: Rule, piece: Placed, device: torch.device) -> tuple[int, Tensor | None]:
        """Return the first key that a piece sees, and what it sees from there on; None for all up to each query."""
        key = (rule, piece.start, piece.stop)
        if key not in self.masks:
            self.masks[key] = rule.mask(piece.start, piece.stop, device)
        return self.masks[key]


@dataclass(frozen=True, eq=False)
class Rule:
    """Which key positions a query position sees, as the architecture says it."""

    sees: Callable[..., Any]
    is_causal: bool

    def mask(self, start: int, stop: int, device: torch.device) -> tuple[int, Tensor | None]:
        """Return first key and [stop - start, stop - first] bool of queries start..stop; None where plainly causal."""
        if self.is_causal:
            return 0, None
        queries = torch.arange(start, stop, device=device).unsqueeze(1)
        seen = self.sees(0, 0, queries, torch.arange(stop, device=device).unsqueeze(0))
        first = int(seen.any(dim=0).int().argmax())
        seen = seen[:, first:]
        causal = torch.ones_like(seen).tril_(start - first)
        return first, None if torch.equal(seen, causal) else seen


def packed_rule(*args: Any, mask_function: Callable[..., Any] | None = None, **kwargs: Any) -> Rule:
    """Stand in for the making of a mask."""
    from transformers.masking_utils import causal_mask_function

    if mask_function is None:
        raise ValueError("no rule of which keys a query sees")
    return Rule(mask_function, mask_function is causal_mask_function)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    through_float32: bool = False,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend piece by piece: [1, H, L, D] queries, [1, H_kv, L, D] keys and values to [1, L, H, D].

    `through_float32` computes in float32 and rounds what comes out. It rounds less than torch's bfloat16 kernel, which
    on a CPU takes 1.3 to 1.8 times as long.
    """
    if not isinstance(attention_mask, Rule) or position_bias is not None:
        raise ValueError("attention that does not come with a rule of which keys a query sees")
    pack = CURRENT.get()
    layer, pack.num_layers = pack.num_layers, pack.num_layers + 1
    for number, rows in pack.keep.items():
        pack.kept.setdefault(number, []).append((key[0, :, rows].clone(), value[0, :, rows].clone()))
    out = query.new_empty(1, query.shape[2], query.shape[1], value.shape[-1])
    if through_float32:
        query, key, value = query.float(), key.float(), value.float()
    for piece in pack.placed:
        first, mask = pack.mask(attention_mask, piece, query.device)
        keys, values = (
            torch.cat([*(_source(source, whole, layer, i) for source in piece.sources), whole[:, :, piece.rows]], dim=2)
            if piece.sources
            else whole[:, :, piece.rows]
            for i, whole in enumerate((key, value))
        )
        part = (query[:, :, piece.rows], keys[:, :, first:], values[:, :, first:], mask, scaling)
        found = attend(*part) if softcap is None and s_aux is None else attend_by_hand(*part, softcap, s_aux)
        out[:, piece.rows] = found.transpose(1, 2)
    return out, None


def _source(source: slice | KV, whole: Tensor, layer: int, which: int) -> Tensor:
    """Keys or values of something that a piece goes on from, [1, H_kv, n, D]."""
    if isinstance(source, slice):
        return whole[:, :, source]
    return source.layers[layer][which].unsqueeze(0).to(whole.device, whole.dtype)
