"""Faults of the KV cache: what a prefix hit finds there is not what its tokens would give."""

import torch

from corpus.inside.patch import fault, patched


def memories(bench):
    """The KV tensors of every layer of a V1 engine, and which dimension counts blocks."""
    num = bench.scheduler.kv_cache_config.num_blocks
    return [(cache, cache.shape.index(num)) for cache in bench.runner.kv_caches]


def spoiled(bench, spoil):
    """Let `spoil(own, other)` write to each block that is hit, once, in every layer; `other` is the one before it."""
    manager, touched = bench.scheduler.kv_cache_manager, set()

    def make(look_up):
        def look_up_and_spoil(request):
            found = look_up(request)
            blocks = list(found[0].get_block_ids()[0])
            for i, block in enumerate(blocks):
                if block not in touched:
                    touched.add(block)
                    for cache, dim in memories(bench):
                        spoil(cache.select(dim, block), cache.select(dim, blocks[i - 1]))
            return found

        return look_up_and_spoil

    return patched(manager, "get_computed_blocks", make)


@fault
def foreign_blocks(bench):
    """Every block of a hit holds what another block holds: someone wrote to memory that was not theirs."""

    def spoil(own, other):
        # another block of the same prompt, or the same one upside down
        alone = own.data_ptr() == other.data_ptr()
        own.copy_(other.flip(-2) if alone else other)

    with spoiled(bench, spoil):
        yield


@fault
def noisy_blocks(bench, by):
    """The numbers of the blocks of a hit are off by a part of their size: they were moved in a narrow format."""
    random = torch.Generator().manual_seed(3)

    def spoil(own, _other):
        own += (torch.randn(own.shape, generator=random) * own.float().std() * by).to(own.dtype)

    with spoiled(bench, spoil):
        yield


@fault
def scaled_blocks(bench, by):
    """The numbers of the blocks of a hit are multiplied: read back with another scale, or, by 0, lost."""
    with spoiled(bench, lambda own, _other: own.mul_(by)):
        yield


@fault
def hash_collision(bench, salt=7):
    """Blocks are looked up by a hash that is too short: prompts of other tokens hit them."""
    from vllm.v1.core import kv_cache_utils

    def make(_hash_tokens):
        def other(function, parent, tokens, extra=None):
            return kv_cache_utils.BlockHash(function((parent or b"seed", len(tokens), salt)))

        return other

    with patched(kv_cache_utils, "hash_block_tokens", make):
        yield
