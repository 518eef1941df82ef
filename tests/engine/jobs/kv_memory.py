"""Which weights wrote each number of an engine's KV memory, seen in the memory itself: no table, no bookkeeping."""

import torch


class Memory:
    """Watches one layer's cache. The versions must write other numbers for the same token; use float32.

    Args:
        cache: the layer's tensor; one of its dimensions is the blocks.
        num_blocks: of the engine, unlike any other dimension.
    """

    def __init__(self, cache, num_blocks):
        self._bits = cache.view(torch.int32)
        self._dim = cache.shape.index(num_blocks)
        self._versions = torch.full(cache.shape, -1, dtype=torch.int16)
        self._before = None

    def before(self):
        """A forward begins."""
        self._before = self._bits.clone()

    def after(self, version):
        """A forward on these weights has ended."""
        self._versions[self._bits != self._before] = version

    def versions(self, block):
        """The oldest and the newest weights that wrote what is in a block."""
        written = self._versions.select(self._dim, block)
        written = written[written >= 0]
        return [int(written.min()), int(written.max())]
