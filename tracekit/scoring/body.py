"""Spans through the body of a model: packed without padding where the architecture allows it, else by length."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tracekit.errors import ModelError
from tracekit.scoring.batching import plan_batches
from tracekit.scoring.head import SplitModel
from tracekit.scoring.kv import KV
from tracekit.scoring.packing import PackedRun, switch_to_packed
from tracekit.scoring.parts import Part
from tracekit.scoring.proof import LONGEST_MATTERS, why_not_packed
from tracekit.scoring.spans import Span

PACKED = "packed"
BY_LENGTH = "by length"
Batches = Iterator[tuple[Tensor, list[Part]]]


class Body:
    """The body of a model, and how sequences go through it.

    Attributes:
        packing: "packed": one row of pieces, a shared prefix once, over KV of any weights; or "by length": padded on
            the right, nothing shared.
        why_by_length: in a few words; None where packed.
    """

    def __init__(self, model: SplitModel) -> None:
        self.model = model
        self.why_by_length = why_not_packed(model)
        self.packing = PACKED if self.why_by_length is None else BY_LENGTH
        if self.packing == PACKED:
            switch_to_packed(model.body)

    def run(self, spans: list[Span], max_batch_tokens: int, *, share: bool, kvs: dict[int, KV]) -> Batches:
        """Run spans, batch by batch.

        Args:
            spans: what to run.
            max_batch_tokens: bound on the tokens that run together.
            share: whether prefixes of equal ids run once.
            kvs: receives the KV of the spans that keep it, by index.

        Yields:
            [N, H] hidden states of a batch and the parts of it that are to be scored.

        Raises:
            ModelError: a span needs KV and the architecture cannot be packed.
        """
        if self.packing == PACKED:
            yield from self._run_packed(spans, max_batch_tokens, share, kvs)
            return
        if any(span.past is not None or span.keep_kv for span in spans):
            raise ModelError(
                f"{self.model.architecture} cannot score tokens over the KV of other weights: {self.why_by_length}"
            )
        yield from self._run_by_length(spans, max_batch_tokens)

    def _run_packed(self, spans: list[Span], max_batch_tokens: int, share: bool, kvs: dict[int, KV]) -> Batches:
        run = PackedRun(self.model, spans, max_batch_tokens, share=share)
        for pieces in run.packs:
            hidden = run.forward(pieces, kvs)
            parts, row = [], 0
            for piece in (run.forest.pieces[i] for i in pieces):
                for i in piece.spans:
                    first = spans[i].stop - spans[i].num_scored
                    begin = max(first, piece.start)
                    output = spans[i].outputs[0] + begin - first
                    parts.append(Part(i, output, row + begin - piece.start, piece.stop - begin))
                row += len(piece.ids)
            yield hidden, parts

    def _run_by_length(self, spans: list[Span], max_batch_tokens: int) -> Batches:
        todo = [i for i, span in enumerate(spans) if span.num_scored]
        bound = 1 if self.why_by_length == LONGEST_MATTERS else max_batch_tokens
        for batch in plan_batches([spans[i].stop for i in todo], bound):
            chosen = [todo[i] for i in batch]
            width = max(spans[i].stop for i in chosen)
            ids = torch.zeros(len(chosen), width, dtype=torch.long)
            for row, i in zip(ids, chosen, strict=True):
                row[: spans[i].stop] = torch.from_numpy(spans[i].input_ids)
            hidden = self.model.hidden_states(ids.to(self.model.device)).flatten(0, 1)
            parts = []
            for number, i in enumerate(chosen):
                num = spans[i].num_scored
                parts.append(Part(i, spans[i].outputs[0], number * width + spans[i].stop - num, num))
            yield hidden, parts
