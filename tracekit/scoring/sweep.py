"""What a row of logits adds up to, in blocks that stay in a CPU's cache.

Everything is measured from the row's most likely token and sums leave that token out, because 1 - p of a token that
is nearly certain would otherwise be lost in the subtraction.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor

_BLOCK_BYTES = 1 << 20  # of logits per CPU thread; the buffers beside them take three times that
_SMALLEST = -43.0  # log of the smallest weight whose square is a normal float32: CPUs are slow beyond


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over a block of rows, [r] each; the weight of a token is exp((logit - best) / temperature)."""

    best: Tensor
    """float32, the largest logit."""
    best_token: Tensor
    """int64, the first token that has it."""
    rest: Tensor
    """float64, weights of all tokens but `best_token`."""
    squares: Tensor
    """float64, their squares."""
    weights: Tensor
    """[r, V] float32, 0 at `best_token`; good until the next sums of its kind are asked for."""

    def __getitem__(self, rows: Tensor) -> Sums:
        """Return the sums of the rows at some indices; those of all rows, in their order, are not copied."""
        if len(rows) == len(self.best):
            return self
        return Sums(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def log_total(self) -> Tensor:
        """Log of the sum of all weights, float64: a logprob is (logit - best) / temperature - log_total."""
        return self.rest.log1p()


class Sweep:
    """Goes over a chunk of logits block by block, with buffers that are used again.

    Args:
        logits: [R, V] float32.
    """

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
        num_rows = len(logits)
        if logits.device.type == "cpu":
            num_rows = min(num_rows, _BLOCK_BYTES * torch.get_num_threads() // (4 * logits.shape[1]))
        self._num_rows = max(num_rows, 1)
        self._gaps, self._weights, self._scratch = (logits.new_empty(self._num_rows, logits.shape[1]) for _ in range(3))

    def blocks(self) -> Iterator[slice]:
        """Rows of one block after the other."""
        for first in range(0, len(self.logits), self._num_rows):
            yield slice(first, min(first + self._num_rows, len(self.logits)))

    def plain(self, block: slice) -> Sums:
        """Sums of a block at temperature 1."""
        rows = self.logits[block]
        best, best_token = _largest(rows)
        gaps = torch.sub(rows, best.unsqueeze(1), out=self._gaps[: len(rows)])
        weights = torch.clamp(gaps, min=_SMALLEST, out=self._weights[: len(rows)]).exp_()
        return _sums(best, best_token, weights)

    def entropy(self, plain: Sums) -> Tensor:
        """[r] float64 entropy in nats of the block whose plain sums were asked for last."""
        num_rows = len(plain.best)
        gaps = torch.clamp(self._gaps[:num_rows], min=_SMALLEST, out=self._scratch[:num_rows])
        slope = gaps.mul_(plain.weights).sum(dim=-1)
        return plain.log_total - slope.double() / (1 + plain.rest)

    def tempered(self, plain: Sums, temperature: Tensor) -> Sums:
        """Sums of the block whose plain sums were asked for last, at a temperature for each row, [r] float32."""
        num_rows = len(plain.best)
        gaps = torch.div(self._gaps[:num_rows], temperature.unsqueeze(1), out=self._scratch[:num_rows])
        return _sums(plain.best, plain.best_token, gaps.clamp_(min=_SMALLEST).exp_())


def _sums(best: Tensor, best_token: Tensor, weights: Tensor) -> Sums:
    weights.scatter_(1, best_token.unsqueeze(1), 0.0)
    squares = torch.linalg.vector_norm(weights, dim=-1).double().square()
    return Sums(best, best_token, weights.sum(dim=-1).double(), squares, weights)


def _largest(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[r] largest value, and [r] where it is first."""
    if rows.device.type == "cpu":  # torch's own takes a CPU twenty times as long as numpy's
        token = torch.from_numpy(rows.numpy().argmax(axis=-1))
    else:
        token = rows.argmax(dim=-1)
    return rows.gather(1, token.unsqueeze(1)).squeeze(1), token
