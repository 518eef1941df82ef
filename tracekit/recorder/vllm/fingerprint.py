"""A hash of a small sample of every weight tensor: cheap enough to take at every weight change.

Parameters only. Buffers are not weights that anybody sends: they are derived from the configuration (rotary tables) or
rewritten by the engine itself (KV scales), and would report changes that nobody made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

SAMPLE = 64  # elements of a tensor, at most; a third of it at least, where the tensor has them

# name, dtype, shape, hash; a null hash: this tensor cannot be read
Fingerprint = tuple[str, str, tuple[int, ...], int | None]
# dtype, shape and hash by (rank, name): all tensors of all workers
Tensors = Mapping[tuple[int, str], tuple[str, tuple[int, ...], int | None]]


def fingerprints(model: Any) -> list[Fingerprint]:
    """Return the fingerprint of every parameter of a model; tied weights have one, under their first name.

    The bytes of elements at an odd stride are hashed, in the order in which they are stored, so that equal weights have
    equal hashes in any process. One copy to the host for each device, no synchronization for each tensor. A change that
    touches no sampled element is not seen.

    The hash is null where there is nothing to read: empty parameters (the CPU builds of vLLM pack Linear weights away
    and leave one of shape [0]), meta tensors, and storage that was freed.

    Args:
        model: a torch.nn.Module.

    Raises:
        RuntimeError: torch's own, where the device fails.
    """
    named = [(name, parameter.data) for name, parameter in model.named_parameters()]
    samples = [_sample(tensor) for _, tensor in named]
    hashes = _hashes(samples)
    return [
        (name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), digest)
        for (name, tensor), digest in zip(named, hashes, strict=True)
    ]


def count_changed(before: Tensors | None, now: Tensors | None) -> int | None:
    """Return how many tensors differ, in hash, dtype or shape; also those that only one side has.

    None where that is not known: a side is missing, or a tensor cannot be read and no other one differs.
    """
    if before is None or now is None:
        return None
    changed, unknown = 0, False
    for key in before.keys() | now.keys():
        old, new = before.get(key), now.get(key)
        if old is None or new is None or old[:2] != new[:2]:
            changed += 1
        elif old[2] is None or new[2] is None:
            unknown = True
        else:
            changed += old[2] != new[2]
    return None if unknown and not changed else changed


def _sample(tensor: Any) -> Any:
    """A one-dimensional view of at most SAMPLE elements, as integers of their size; None where it cannot be read."""
    import torch

    as_integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(tensor.element_size())
    if tensor.layout != torch.strided or tensor.is_meta or not tensor.numel() or as_integers is None:
        return None
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if (tensor.storage_offset() + last + 1) * tensor.element_size() > tensor.untyped_storage().nbytes():
        return None
    stored = tensor
    if not tensor.is_contiguous():
        # quantised weights are often kept transposed: in the order of storage they are one run of elements
        stored = tensor.permute(sorted(range(tensor.dim()), key=lambda d: -tensor.stride(d)))
    step = -(-tensor.numel() // SAMPLE) | 1  # odd, or a row length that it divides would sample one column
    try:
        flat = stored.view(-1)
    except RuntimeError:  # has gaps: a window into a larger tensor
        return _grid(stored).view(as_integers)
    return flat[::step].view(as_integers)


def _grid(tensor: Any) -> Any:
    """About SAMPLE elements of a tensor with gaps, evenly along each dimension; copies only those."""
    left = SAMPLE
    for dim in reversed(range(tensor.dim())):
        wanted = max(1, round(left ** (1 / (dim + 1))))
        step = -(-tensor.shape[dim] // wanted)
        tensor = tensor[(slice(None),) * dim + (slice(None, None, step),)]
        left = max(1, left // tensor.shape[dim])
    return tensor.reshape(-1)


def _hashes(samples: list[Any]) -> list[int | None]:
    import torch

    hashes: list[int | None] = [None] * len(samples)
    groups: dict[Any, dict[Any, list[int]]] = {}
    for i, sample in enumerate(samples):
        if sample is not None:
            groups.setdefault(sample.device, {}).setdefault(sample.dtype, []).append(i)
    for by_size in groups.values():
        joined = [torch.cat([samples[i] for i in found]).view(torch.uint8) for found in by_size.values()]
        raw = torch.cat(joined).cpu().numpy().tobytes()
        at = 0
        for found in by_size.values():
            for i in found:
                end = at + samples[i].numel() * samples[i].element_size()
                hashes[i] = int.from_bytes(hashlib.blake2b(raw[at:end], digest_size=8).digest(), "big")
                at = end
    return hashes
