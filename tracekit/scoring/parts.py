"""Which hidden states of a batch are to be scored, and as which tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracekit.scoring.sampling import Segment
from tracekit.scoring.spans import Span


@dataclass(frozen=True, eq=False)
class Part:
    """Consecutive hidden states of a batch from which tokens of one span were sampled.

    Attributes:
        span: its index.
        output: index into the completion of the first of those tokens.
        row: of the first hidden state.
        num: tokens.
    """

    span: int
    output: int
    row: int
    num: int


def chunks(parts: list[Part], num_rows: int) -> Iterator[list[Part]]:
    """Cut parts into lists of `num_rows` rows (the last may have fewer)."""
    chunk: list[Part] = []
    room = num_rows
    for part in parts:
        done = 0
        while done < part.num:
            num = min(part.num - done, room)
            chunk.append(Part(part.span, part.output + done, part.row + done, num))
            done, room = done + num, room - num
            if not room:
                yield chunk
                chunk, room = [], num_rows
    if chunk:
        yield chunk


def tokens_of(span: Span, part: Part) -> NDArray[np.uint32]:
    """Ids of the tokens that a part scores."""
    return span.sequence.token_ids[part.output : part.output + part.num]


def segments_of(spans: list[Span], parts: list[Part]) -> list[list[Segment]]:
    """Return what the rows of parts are, for as many readings as any of their spans asks for.

    A span that asks for fewer repeats its last; nobody looks at what comes of that.
    """
    readings = []
    for number in range(max(len(spans[part.span].readings) for part in parts)):
        segments = []
        for part in parts:
            span = spans[part.span]
            params = span.readings[min(number, len(span.readings) - 1)]
            ids = span.sequence.prompt_token_ids, span.sequence.token_ids
            segments.append(Segment(params, *ids, part.output, part.output + part.num))
        readings.append(segments)
    return readings
