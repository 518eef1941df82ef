"""Fingerprints of a model folder's tensors, to be held against those that the recorder took of an engine's.

As `tracekit.recorder.vllm.fingerprint` has it: the bytes of elements at an odd stride, in the engine's dtype. Names are
those of vLLM, which joins the projections of attention and MLP by rows. Only the elements are read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tracekit.replay.checkpoints import TORCH_NAMES, header

SAMPLE = 64  # elements, as the recorder takes them

_JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
_INTEGERS = {"F64": "<i8", "F32": "<i4", "F16": "<i2", "BF16": "<i2"}


class Wanted(NamedTuple):
    """A tensor as an engine has it: name, torch's name of the dtype, shape."""

    tensor: str
    dtype: str
    shape: tuple[int, ...]


class _Stored(NamedTuple):
    path: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


def of_folder(folder: Path, wanted: Iterable[Wanted]) -> dict[Wanted, int]:
    """Return the fingerprints of those tensors that the folder's safetensors files hold in a layout that is known."""
    wanted = set(wanted)
    if not wanted:
        return {}
    stored = {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in _index(path).items()}
    found = {}
    for one in wanted:
        parts = [stored.get(name) for name in _names(one.tensor, stored)]
        fingerprint = _fingerprint(one, [part for part in parts if part is not None]) if all(parts) else None
        if fingerprint is not None:
            found[one] = fingerprint
    return found


def arrived(older: Path, newer: Path, dtype: str) -> tuple[int, int]:
    """Return how many tensors differ between two folders as they are stored, and how many once cast to `dtype`.

    Args:
        older: folder of the weights before an update.
        newer: folder of those after it.
        dtype: that an engine casts them to.
    """
    before, after = (
        {k: t for path in sorted(f.glob("*.safetensors")) for k, t in _index(path).items()} for f in (older, newer)
    )
    both = [(before[name], after[name]) for name in sorted(before.keys() & after.keys())]
    return _num_moved(both, None), _num_moved(both, dtype)


def _num_moved(pairs: Iterable[tuple[_Stored, _Stored]], dtype: str | None) -> int:
    """How many of these differ in a type; None: in that which each is stored in."""
    found = 0
    for pair in pairs:
        hashes = [_fingerprint(Wanted("", dtype or TORCH_NAMES.get(s.dtype, ""), s.shape), [s]) for s in pair]
        found += hashes[0] != hashes[1]
    return found


def _index(path: Path) -> dict[str, _Stored]:
    start, tensors = header(path)
    return {
        name: _Stored(path, start + about["data_offsets"][0], about["dtype"], tuple(about["shape"]))
        for name, about in tensors.items()
    }


def _names(tensor: str, stored: Mapping[str, _Stored]) -> list[str]:
    """The names of what a tensor of vLLM is made of."""
    for joined, parts in _JOINED.items():
        if f".{joined}." in tensor:
            return [tensor.replace(joined, part) for part in parts]
    tied = tensor == "lm_head.weight" and tensor not in stored
    return ["model.embed_tokens.weight" if tied else tensor]


def _fingerprint(wanted: Wanted, parts: list[_Stored]) -> int | None:
    import torch

    rows, *rest = wanted.shape or (1,)
    same = {(part.dtype, part.shape[1:]) for part in parts} == {(parts[0].dtype, tuple(rest))}
    if not same or sum(part.shape[0] for part in parts) != rows or parts[0].dtype not in TORCH_NAMES:
        return None
    sizes = [int(np.prod(part.shape)) for part in parts]
    count = sum(sizes)
    at = np.arange(0, count, -(-count // SAMPLE) | 1)
    edges = np.cumsum([0, *sizes])
    elements = [
        np.memmap(part.path, _INTEGERS[part.dtype], "r", part.offset, (size,))[at[(at >= first) & (at < end)] - first]
        for part, size, (first, end) in zip(parts, sizes, pairwise(edges), strict=True)
    ]
    values = torch.from_numpy(np.concatenate(elements)).view(getattr(torch, TORCH_NAMES[parts[0].dtype]))
    raw = values.to(getattr(torch, wanted.dtype)).view(torch.uint8).numpy().tobytes()
    return int.from_bytes(blake2b(raw, digest_size=8).digest(), "big")
