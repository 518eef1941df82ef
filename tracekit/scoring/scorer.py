"""Score recorded tokens by teacher forcing: body in a chosen dtype, output embedding and log-softmax in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tracekit.errors import ModelError, ReplayRefused
from tracekit.scores import Scores, Values, unscored
from tracekit.scoring.batching import plan_batches
from tracekit.scoring.head import SplitModel
from tracekit.scoring.loading import load_model, pick_device
from tracekit.scoring.rows import score_rows
from tracekit.scoring.sampling import Segment
from tracekit.scoring.spans import Span, SpanScores

_CHUNK_BYTES = {"cpu": 64 << 20}  # bound on rows x vocabulary x 4 bytes
_CHUNK_BYTES_GPU = 512 << 20


@dataclass(frozen=True, eq=False)
class Scorer:
    """A model that scores sequences; make one with `Scorer.load`.

    Attributes:
        name: of the model's folder.
        model: body and head.
        chunk_rows: tokens whose logits exist at a time.
    """

    name: str
    model: SplitModel
    chunk_rows: int

    @classmethod
    def load(cls, path: str | Path, *, dtype: str = "bfloat16", device: str | None = None) -> Scorer:
        """Load any causal LM that transformers reads from a local folder.

        The head's float32 weights are those of the loaded dtype: an engine's head holds the same.

        Args:
            path: folder with config.json and weights.
            dtype: of the body: bfloat16, float16 or float32.
            device: a torch device; the default is CUDA where torch finds it, else the CPU.

        Raises:
            ModelError: the folder holds no loadable model, or one that cannot be scored in two halves.
            UsageError: unknown dtype or device.
        """
        folder = Path(path)
        with _exact_float32():
            model = SplitModel(load_model(folder, dtype=dtype, device=pick_device(device)))
        bound = _CHUNK_BYTES.get(model.device.type, _CHUNK_BYTES_GPU)
        return cls(folder.resolve().name, model, max(bound // (4 * model.vocab_size), 1))

    @property
    def vocab_size(self) -> int:
        """Rows of the output embedding."""
        return self.model.vocab_size

    @property
    def device(self) -> str:
        """The torch device of the weights."""
        return str(self.model.device)

    @property
    def packing(self) -> str:
        """How sequences go through the body together: "by length", padded on the right."""
        return "by length"

    @property
    def arithmetic(self) -> str:
        """What the body computes in."""
        return self.model.dtype

    def score(
        self,
        spans: list[Span],
        *,
        max_batch_tokens: int,
        share: bool = True,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[SpanScores]:
        """Score the tokens of each span given everything before them.

        Args:
            spans: parts of recorded requests.
            max_batch_tokens: bound on the tokens, padding included, that go through the body together.
            share: whether prefixes that spans have in common run once.
            on_tokens: called with the number of tokens scored since the last call.

        Returns:
            Scores in the order of the spans, as numpy arrays of float64 and int64.

        Raises:
            ModelError: a token is beyond the model's vocabulary.
            ReplayRefused: a prompt is empty.
            ValueError: max_batch_tokens is below 1.
        """
        for span in spans:
            self._check(span)
            if span.past is not None or span.keep_kv:
                raise ModelError("KV that other weights computed cannot be scored over yet")
        scores = [SpanScores(tuple(unscored(0) for _ in span.readings)) for span in spans]
        todo = [i for i, span in enumerate(spans) if span.num_scored]
        with torch.inference_mode(), _exact_float32():
            for batch in plan_batches([spans[i].stop for i in todo], max_batch_tokens):
                chosen = [todo[i] for i in batch]
                found = [r.each(_to_numpy) for r in self._score_batch([spans[i] for i in chosen], on_tokens)]
                ends = np.cumsum([spans[i].num_scored for i in chosen])
                for i, end in zip(chosen, ends, strict=True):
                    rows = slice(end - spans[i].num_scored, end)
                    readings = found[: len(spans[i].readings)]
                    scores[i] = SpanScores(tuple(reading.each(itemgetter(rows)) for reading in readings))
        return scores

    def _check(self, span: Span) -> None:
        sequence = span.sequence
        if not len(sequence.prompt_token_ids):
            raise ReplayRefused(f"request {sequence.request} has an empty prompt, so its first token has no context")
        named = np.asarray([token for params in span.readings for token in params.named_ids], np.int64)
        for ids in (sequence.prompt_token_ids, sequence.token_ids, named):
            if len(ids) and int(ids.max()) >= self.vocab_size:
                raise ModelError(
                    f"the trace has token id {int(ids.max())} but the model's vocabulary is {self.vocab_size}: "
                    "this is another model"
                )

    def _score_batch(self, spans: list[Span], on_tokens: Callable[[int], None] | None) -> list[Scores[Tensor]]:
        """Score one batch, once a reading; the rows are the tokens of its spans, one after the other."""
        hidden = self._hidden_states(spans)
        targets = np.concatenate([span.sequence.token_ids[slice(*span.outputs)] for span in spans])
        chosen = torch.from_numpy(targets.astype(np.int64)).to(hidden.device)
        parts = []
        for first in range(0, len(hidden), self.chunk_rows):
            chunk = slice(first, first + self.chunk_rows)
            logits = self.model.logits(hidden[chunk])
            readings = _readings(spans, first, first + len(logits))
            parts.append(score_rows(logits, chosen[chunk], readings))
            if on_tokens:
                on_tokens(len(logits))
        return [Scores.join(list(reading), torch.cat) for reading in zip(*parts, strict=True)]

    def _hidden_states(self, spans: list[Span]) -> Tensor:
        """[R, H] hidden states from which the tokens of a batch were sampled."""
        ids = torch.zeros(len(spans), max(span.stop for span in spans), dtype=torch.long)
        for row, span in zip(ids, spans, strict=True):
            row[: span.stop] = torch.from_numpy(span.input_ids)
        hidden = self.model.hidden_states(ids.to(self.model.device))
        rows = zip(hidden, spans, strict=True)
        return torch.cat([row[span.stop - span.num_scored : span.stop] for row, span in rows])


def _readings(spans: list[Span], first: int, end: int) -> list[list[Segment]]:
    """What the rows first..end of a batch are, for every reading that a span of it asks for."""
    readings: list[list[Segment]] = [[] for _ in range(max(len(span.readings) for span in spans))]
    offset = 0
    for span in spans:
        start, stop = max(first - offset, 0), min(end - offset, span.num_scored)
        if start < stop:
            sequence, skipped = span.sequence, span.outputs[0]
            for number, segments in enumerate(readings):
                params = span.readings[min(number, len(span.readings) - 1)]
                segments.append(
                    Segment(params, sequence.prompt_token_ids, sequence.token_ids, skipped + start, skipped + stop)
                )
        offset += span.num_scored
    return readings


def _to_numpy(column: Tensor) -> Values:
    return column.to("cpu", torch.float64 if column.is_floating_point() else torch.int64).numpy()


@contextlib.contextmanager
def _exact_float32() -> Iterator[None]:
    """Keep float32 products in float32: a caller may have let torch use TF32 or bfloat16 for them."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
