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
from tracekit.scoring.types import Sequence

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

    def score(
        self,
        sequences: list[Sequence],
        *,
        max_batch_tokens: int,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[Scores[Values]]:
        """Score the completion tokens of each sequence given everything before them.

        Args:
            sequences: recorded requests.
            max_batch_tokens: bound on the tokens, padding included, that go through the body together.
            on_tokens: called with the number of completion tokens scored since the last call.

        Returns:
            Scores in the order of the sequences, [T] each, as numpy arrays of float64 and int64.

        Raises:
            ModelError: a token is beyond the model's vocabulary.
            ReplayRefused: a prompt is empty.
            ValueError: max_batch_tokens is below 1.
        """
        for sequence in sequences:
            self._check(sequence)
        scores = [unscored(0)] * len(sequences)
        todo = [i for i, sequence in enumerate(sequences) if len(sequence.token_ids)]
        lengths = [len(sequences[i].prompt_token_ids) + len(sequences[i].token_ids) - 1 for i in todo]
        with torch.inference_mode(), _exact_float32():
            for batch in plan_batches(lengths, max_batch_tokens):
                chosen = [todo[i] for i in batch]
                rows = self._score_batch([sequences[i] for i in chosen], on_tokens).each(_to_numpy)
                ends = np.cumsum([len(sequences[i].token_ids) for i in chosen])
                for i, end in zip(chosen, ends, strict=True):
                    scores[i] = rows.each(itemgetter(slice(end - len(sequences[i].token_ids), end)))
        return scores

    def _check(self, sequence: Sequence) -> None:
        if not len(sequence.prompt_token_ids):
            raise ReplayRefused(f"request {sequence.request} has an empty prompt, so its first token has no context")
        for ids in (sequence.prompt_token_ids, sequence.token_ids, np.asarray(sequence.params.named_ids, np.int64)):
            if len(ids) and int(ids.max()) >= self.vocab_size:
                raise ModelError(
                    f"the trace has token id {int(ids.max())} but the model's vocabulary is {self.vocab_size}: "
                    "this is another model"
                )

    def _score_batch(self, sequences: list[Sequence], on_tokens: Callable[[int], None] | None) -> Scores[Tensor]:
        """Score one batch; the rows are the completion tokens of its sequences, one after the other."""
        hidden = self._hidden_states(sequences)
        targets = torch.from_numpy(np.concatenate([s.token_ids for s in sequences]).astype(np.int64)).to(hidden.device)
        parts: list[Scores[Tensor]] = []
        for first in range(0, len(hidden), self.chunk_rows):
            chunk = slice(first, first + self.chunk_rows)
            segments = list(_segments(sequences, first, min(chunk.stop, len(hidden))))
            parts += score_rows(self.model.logits(hidden[chunk]), targets[chunk], [segments])
            if on_tokens:
                on_tokens(len(targets[chunk]))
        return Scores.join(parts, torch.cat)

    def _hidden_states(self, sequences: list[Sequence]) -> Tensor:
        """[R, H] hidden states from which the completion tokens of a batch were sampled."""
        inputs = [np.concatenate([s.prompt_token_ids, s.token_ids[:-1]]).astype(np.int64) for s in sequences]
        ids = torch.zeros(len(inputs), max(map(len, inputs)), dtype=torch.long)
        for row, tokens in zip(ids, inputs, strict=True):
            row[: len(tokens)] = torch.from_numpy(tokens)
        hidden = self.model.hidden_states(ids.to(self.model.device))
        starts = [len(s.prompt_token_ids) - 1 for s in sequences]
        return torch.cat(
            [row[start : start + len(s.token_ids)] for row, start, s in zip(hidden, starts, sequences, strict=True)]
        )


def _segments(sequences: list[Sequence], first: int, end: int) -> Iterator[Segment]:
    """What the rows first..end of a batch are."""
    offset = 0
    for sequence in sequences:
        start, stop = max(first - offset, 0), min(end - offset, len(sequence.token_ids))
        if start < stop:
            yield Segment(sequence.params, sequence.prompt_token_ids, sequence.token_ids, start, stop)
        offset += len(sequence.token_ids)


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
