"""What a scorer is asked, and what it answers: a part of a sequence, under one model's weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.scores import Scores, Values
from tracekit.scoring.kv import KV
from tracekit.scoring.params import Params
from tracekit.scoring.types import Sequence


@dataclass(frozen=True, eq=False, kw_only=True)
class Span:
    """Input positions start..stop of one sequence, run under one model's weights over the KV of what lies before.

    The token at position p is sampled from the hidden state of position p - 1, so a span scores the completion tokens
    at positions max(start + 1, P) to stop, the latter included.

    Example:
        Span(sequence=sequence, readings=(sequence.params,), stop=sequence.num_inputs)
    """

    sequence: Sequence
    readings: tuple[Params, ...]
    """How the sampling parameters are read: each gives scores of its own, all from the same logits."""
    start: int = 0
    """First input position that runs."""
    stop: int
    """One beyond the last input position that runs; at most P + T - 1."""
    past: KV | None = None
    """Of positions 0..start, by whatever weights; None where start is 0."""
    keep_kv: bool = False
    """Whether the answer holds the KV of positions 0..stop."""
    profile: bool = False
    """Whether it holds a profile of the raw logits, too."""

    def __post_init__(self) -> None:
        length = 0 if self.past is None else self.past.length
        if not 0 <= self.start <= self.stop <= self.sequence.num_inputs or length != self.start or not self.readings:
            raise ValueError(
                f"no span: positions {self.start} to {self.stop} of {self.sequence.num_inputs} over the KV of {length}"
            )

    @property
    def outputs(self) -> tuple[int, int]:
        """Indices into the completion of the first scored token, and of one beyond the last."""
        return self.sequence.outputs(self.start, self.stop)

    @property
    def num_scored(self) -> int:
        """Tokens that the span scores."""
        first, end = self.outputs
        return end - first

    @property
    def input_ids(self) -> NDArray[np.int64]:
        """[stop - start] ids of the tokens that run."""
        return self.sequence.input_ids[self.start : self.stop]


@dataclass(frozen=True, eq=False)
class SpanScores:
    """What one span was found to be."""

    readings: tuple[Scores[Values], ...]
    """Of the span's `num_scored` tokens, one for each of its readings."""
    kv: KV | None = None
    """Of positions 0..stop where the span asked to keep it."""
    profile: Values | None = None
    """[num_scored, W] float32 where the span asked for it."""


def whole(sequence: Sequence, readings: Iterable[Params] | None = None) -> Span:
    """Return the span of all of a sequence; the parameters are read as they are where nothing else is said."""
    return Span(
        sequence=sequence,
        readings=(sequence.params,) if readings is None else tuple(readings),
        stop=sequence.num_inputs,
    )
