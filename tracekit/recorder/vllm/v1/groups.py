"""The KV cache groups of a V1 engine: whose blocks hold what."""

from __future__ import annotations

from typing import Any, NamedTuple

from tracekit.recorder.guard import failed


class KvGroup(NamedTuple):
    """Layers that share block tables."""

    block_size: int
    hashed: bool  # whether a block is what the engine hashes
    tracked: bool  # whether its blocks hold the tokens of their place, and only this engine fills them


def kv_groups(scheduler: Any) -> list[KvGroup]:
    """The KV cache groups of a scheduler; none where this vLLM does not tell them."""
    try:
        return _kv_groups(scheduler)
    except Exception as error:
        failed("kv_groups", error)
        return []


def _kv_groups(scheduler: Any) -> list[KvGroup]:
    manager = scheduler.kv_cache_manager
    hash_size = getattr(manager.block_pool, "hash_block_size", None)
    loads = getattr(scheduler, "connector", None) is not None
    groups = zip(scheduler.kv_cache_config.kv_cache_groups, manager.coordinator.single_type_managers, strict=True)
    return [
        KvGroup(own.block_size, own.block_size == hash_size, not loads and _holds_tokens(group.kv_cache_spec))
        for group, own in groups
    ]


def _holds_tokens(spec: Any) -> bool:
    # layers of one type and several sizes
    spec = next(iter((getattr(spec, "kv_cache_specs", None) or {"": spec}).values()))
    kinds = {kind.__name__ for kind in type(spec).__mro__}
    others = {"CrossAttentionSpec", "EncoderOnlyAttentionSpec", "CircularBufferSpec"}
    return "AttentionSpec" in kinds and not kinds & others
