"""A forest of pieces through the body, pack by pack, with the KV that later packs or the caller need."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface

from tracekit.scoring.arithmetic import is_through_float32
from tracekit.scoring.attention import (
    CURRENT,
    NAME,
    NAME_THROUGH_FLOAT32,
    Pack,
    Placed,
    packed_attention,
    packed_rule,
)
from tracekit.scoring.batching import plan_packs
from tracekit.scoring.forest import grow
from tracekit.scoring.head import SplitModel
from tracekit.scoring.kv import KV
from tracekit.scoring.spans import Span


def switch_to_packed(body: Any) -> None:
    """Give a body the attention that `PackedRun` needs; it is of no other use then.

    Raises:
        ImportError: this transformers is too old to be told of a mask.
        ValueError: the architecture does not let its attention be chosen.
    """
    from transformers.masking_utils import AttentionMaskInterface

    name = NAME_THROUGH_FLOAT32 if is_through_float32(body) else NAME
    AttentionInterface.register(name, partial(packed_attention, through_float32=name == NAME_THROUGH_FLOAT32))
    AttentionMaskInterface.register(name, packed_rule)
    body.set_attn_implementation(name)
    if body.config._attn_implementation != name:
        raise ValueError("its attention cannot be chosen")


class PackedRun:
    """Spans on their way through the body.

    Attributes:
        forest: their pieces.
        packs: indices of the pieces that run together, in the order in which they have to run.
    """

    def __init__(self, model: SplitModel, spans: list[Span], max_batch_tokens: int, *, share: bool, **how: int) -> None:
        self._model = model
        self._spans = spans
        self.forest = grow(spans, share=share, **how)
        self.packs = plan_packs(self.forest, max_batch_tokens)
        self._pack_of = {piece: number for number, pack in enumerate(self.packs) for piece in pack}
        self._last_use = self._find_last_use()
        self._kept: dict[int, KV] = {}
        self._done = 0

    def forward(self, pieces: list[int], kvs: dict[int, KV]) -> Tensor:
        """Run the next pack: [L, H] hidden states of its pieces, one after the other; fills in `kvs` that are done."""
        ends = np.cumsum([len(self.forest.pieces[i].ids) for i in pieces]).tolist()
        rows = {i: slice(end - len(self.forest.pieces[i].ids), end) for i, end in zip(pieces, ends, strict=True)}
        placed = [Placed(rows[i], self.forest.pieces[i].start, self._sources(i, rows)) for i in pieces]
        pack = Pack(placed, {i: rows[i] for i in pieces if self._last_use[i] >= self._done})
        hidden = self._run(pack, np.concatenate([self.forest.pieces[i].ids for i in pieces]))
        self._kept.update({i: KV(tuple(layers)) for i, layers in pack.kept.items()})
        wanted = set(pieces)
        for i, span in enumerate(self._spans):
            leaf = self.forest.leaves[i]
            if span.keep_kv and leaf in wanted:
                kvs[i] = KV.join([*self._past(leaf), *(self._kept[p] for p in self.forest.chain(leaf))])
        self._done += 1
        self._kept = {i: kv for i, kv in self._kept.items() if self._last_use[i] >= self._done}
        return hidden

    def _run(self, pack: Pack, ids: Any) -> Tensor:
        device = self._model.device
        positions = np.concatenate([np.arange(piece.start, piece.stop) for piece in pack.placed])
        token = CURRENT.set(pack)
        try:
            # A mask of ones says that nothing is padded: without one, transformers guesses packs from positions.
            output = self._model.body(
                input_ids=torch.from_numpy(ids).unsqueeze(0).to(device),
                position_ids=torch.from_numpy(positions).unsqueeze(0).to(device),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=device),
                use_cache=False,
            )
        finally:
            CURRENT.reset(token)
        hidden: Tensor = output[0][0]
        return hidden

    def _sources(self, piece: int, rows: dict[int, slice]) -> tuple[slice | KV, ...]:
        """What a piece goes on from: rows of this pack, or what an earlier one or the caller kept."""
        chain = self.forest.chain(piece)
        return (*self._past(chain[0]), *(rows.get(i) or self._kept[i] for i in chain[:-1]))

    def _past(self, piece: int | None) -> tuple[KV, ...]:
        past = self.forest.pieces[self.forest.chain(piece)[0]].past
        return () if past is None else (past,)

    def _find_last_use(self) -> list[int]:
        """For each piece the last pack that needs its KV kept; -1 where none does."""
        last = [-1] * len(self.forest.pieces)
        for i in range(len(self.forest.pieces)):
            for ancestor in self.forest.chain(i)[:-1]:
                if self._pack_of[i] > self._pack_of[ancestor]:
                    last[ancestor] = max(last[ancestor], self._pack_of[i])
        for span, leaf in zip(self._spans, self.forest.leaves, strict=True):
            for piece in self.forest.chain(leaf) if span.keep_kv else ():
                last[piece] = max(last[piece], self._pack_of[leaf] if leaf is not None else -1)
        return last
