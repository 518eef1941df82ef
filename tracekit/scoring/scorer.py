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
from tracekit.scores import Scores, Values, put, unscored
from tracekit.scoring.arithmetic import settle_arithmetic
from tracekit.scoring.body import Body
from tracekit.scoring.head import SplitModel
from tracekit.scoring.kv import KV
from tracekit.scoring.layout import WIDTH
from tracekit.scoring.loading import load_model, pick_device
from tracekit.scoring.parts import Part, chunks, segments_of, tokens_of
from tracekit.scoring.profile import profile_rows
from tracekit.scoring.rows import score_rows
from tracekit.scoring.spans import Span, SpanScores

_CHUNK_BYTES = {"cpu": 64 << 20}  # bound on rows x vocabulary x 4 bytes
_CHUNK_BYTES_GPU = 512 << 20


@dataclass(frozen=True, eq=False)
class Scorer:
    """A model that scores sequences; make one with `Scorer.load`.

    Attributes:
        name: of the model's folder.
        model: body and head.
        body: how sequences go through the former.
        chunk_rows: tokens whose logits exist at a time.
        arithmetic: what the body computes in: its dtype, or as `settle_arithmetic` names it.
    """

    name: str
    model: SplitModel
    body: Body
    chunk_rows: int
    arithmetic: str

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        dtype: str = "bfloat16",
        weights: str | None = None,
        device: str | None = None,
        arithmetic: str | None = None,
        head: str = "float32",
        rows: int | None = None,
    ) -> Scorer:
        """Load any causal LM that transformers reads from a local folder.

        The head's float32 weights are those of the loaded dtype: an engine's head holds the same.

        Args:
            path: folder with config.json and weights.
            dtype: of the body: bfloat16, float16 or float32.
            weights: dtype that the stored weights are cast to first, as an engine that runs in it received them; the
                default leaves them as they are.
            device: a torch device; the default is CUDA where torch finds it, else the CPU.
            head: dtype that the head computes in: float32, as a trainer's, or bfloat16.
            rows: of the head, counted from the first, that are added up; the default is all.
            arithmetic: of the body's linears, see `settle_arithmetic`; the default is what is faster here. Loads that
                are to agree to the bit, on machines of one type too, pass on what the first of them says.

        Raises:
            ModelError: the folder holds no loadable model, or one that cannot be scored in two halves.
            UsageError: unknown dtype or device.
        """
        folder = Path(path)
        with _exact_float32():
            loaded = load_model(folder, dtype=dtype, device=pick_device(device), weights=weights)
            chosen = settle_arithmetic(loaded.base_model, arithmetic)
            model = SplitModel(loaded, head=head, rows=rows)
            body = Body(model)
        bound = _CHUNK_BYTES.get(model.device.type, _CHUNK_BYTES_GPU)
        return cls(folder.resolve().name, model, body, max(bound // (4 * model.vocab_size), 1), chosen)

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
        """How sequences go through the body together: "packed", or "by length" where the architecture bars it."""
        return self.body.packing

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
            ModelError: a token is beyond the model's vocabulary, or a position beyond those that it has.
            ModelError: a span needs KV, and the architecture cannot be packed.
            ReplayRefused: a prompt is empty.
            ValueError: max_batch_tokens is below 1.
        """
        for span in spans:
            self._check(span)
        scores = [[unscored(span.num_scored) for _ in span.readings] for span in spans]
        profiles = {i: np.full((s.num_scored, WIDTH), np.nan, np.float32) for i, s in enumerate(spans) if s.profile}
        kvs: dict[int, KV] = {}
        with torch.inference_mode(), _exact_float32():
            for hidden, parts in self.body.run(spans, max_batch_tokens, share=share, kvs=kvs):
                self._score_parts(spans, hidden, parts, scores, profiles)
                del hidden  # before the next batch comes
                if on_tokens:  # not chunk by chunk: the first would be charged with the body of all
                    on_tokens(sum(part.num for part in parts))
        return [SpanScores(tuple(found), kvs.get(i), profiles.get(i)) for i, found in enumerate(scores)]

    def _check(self, span: Span) -> None:
        sequence = span.sequence
        if not len(sequence.prompt_token_ids):
            raise ReplayRefused(f"request {sequence.request} has an empty prompt, so its first token has no context")
        limit = self.model.num_positions
        if limit is not None and span.stop > limit:
            raise ModelError(
                f"request {sequence.request} runs {span.stop} positions but the model has {limit}: "
                "this is another model"
            )
        named = np.asarray([token for params in span.readings for token in params.named_ids], np.int64)
        for ids in (sequence.prompt_token_ids, sequence.token_ids, named):
            if len(ids) and int(ids.max()) >= self.vocab_size:
                raise ModelError(
                    f"the trace has token id {int(ids.max())} but the model's vocabulary is {self.vocab_size}: "
                    "this is another model"
                )

    def _score_parts(
        self,
        spans: list[Span],
        hidden: Tensor,
        parts: list[Part],
        scores: list[list[Scores[Values]]],
        profiles: dict[int, Values],
    ) -> None:
        """Score parts of a batch, as many rows at a time as a chunk has, and put them where they belong."""
        for chunk in chunks(parts, self.chunk_rows):
            rows = np.concatenate([np.arange(part.row, part.row + part.num) for part in chunk])
            targets = np.concatenate([tokens_of(spans[part.span], part) for part in chunk])
            chosen = torch.from_numpy(targets.astype(np.int64)).to(hidden.device)
            logits = self.model.logits(hidden[torch.from_numpy(rows).to(hidden.device)], chosen)
            ends = np.cumsum([part.num for part in chunk])
            for part, end in zip(chunk, ends, strict=True):
                if part.span in profiles:
                    rows_of = slice(int(end) - part.num, int(end))
                    first = part.output - spans[part.span].outputs[0]
                    columns = profile_rows(logits[rows_of], chosen[rows_of])
                    profiles[part.span][first : first + part.num] = columns.cpu().numpy()
            found = score_rows(logits, chosen, segments_of(spans, chunk))
            for reading, its_tensors in enumerate(found):
                its_scores = its_tensors.each(_to_numpy)
                for part, end in zip(chunk, ends, strict=True):
                    if reading < len(spans[part.span].readings):
                        first = part.output - spans[part.span].outputs[0]
                        its_rows = itemgetter(slice(end - part.num, end))
                        put(scores[part.span][reading], np.arange(first, first + part.num), its_scores.each(its_rows))


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
