"""What a replay needs of a scorer: one at a time in memory, and that it agrees with itself."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Protocol

from tracekit.errors import ModelError, ReplayRefused
from tracekit.replay.rollouts import Rollout
from tracekit.scoring.spans import Span, SpanScores, whole

_NUM_IDENTITY = 4


class ScorerLike(Protocol):
    """What the runner needs of a scorer; see `tracekit.scoring.scorer.Scorer`."""

    @property
    def name(self) -> str:
        """The name of the model."""

    @property
    def device(self) -> str:
        """Torch's name of the device."""

    @property
    def vocab_size(self) -> int:
        """Rows of the head."""

    @property
    def packing(self) -> str:
        """How sequences go through the body together."""

    @property
    def arithmetic(self) -> str:
        """What the body computes in."""

    def score(
        self,
        spans: list[Span],
        *,
        max_batch_tokens: int,
        share: bool = True,
        on_tokens: Callable[[int], None] | None = None,
    ) -> list[SpanScores]:
        """Score spans, in their order, `max_batch_tokens` together; `on_tokens` hears of each batch."""


Load = Callable[[Path, str], ScorerLike]
"""Folder and dtype to scorer."""


class OneAtATime:
    """Loads scorers and keeps the last one: two bodies need not fit in memory together."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._key: tuple[Path, str] | None = None
        self._scorer: ScorerLike | None = None

    def __call__(self, folder: Path, dtype: str) -> ScorerLike:
        """Return the scorer of a folder in a dtype."""
        if self._scorer is None or self._key != (folder, dtype):
            self._scorer = None
            self._scorer, self._key = self._load(folder, dtype), (folder, dtype)
        return self._scorer


def torch_loader(device: str | None) -> Load:
    """Return what loads a scorer with torch and transformers.

    Raises:
        ModelError: one of the two is not installed.
    """
    try:
        from tracekit.scoring.scorer import Scorer
    except ImportError as error:
        raise ModelError(f"replay needs torch and transformers ({error}): pip install 'tracekit-rl[replay]'") from error
    return lambda folder, dtype: Scorer.load(folder, dtype=dtype, device=device)


def identity_test(scorer: ScorerLike, rollouts: Seq[Rollout], max_batch_tokens: int) -> None:
    """Score a few rollouts twice in the same shape.

    Raises:
        ReplayRefused: the two are not bit-equal, so that nothing the scorer says could be told from its own whims.
    """
    few = [whole(r.sequence) for r in rollouts[:_NUM_IDENTITY]]
    first, second = (scorer.score(few, max_batch_tokens=max_batch_tokens) for _ in range(2))
    for span, one, other in zip(few, first, second, strict=True):
        (a,), (b,) = one.readings, other.readings
        for name in ("raw_logprob", "forced_logprob"):
            if getattr(a, name).tobytes() != getattr(b, name).tobytes():
                raise ReplayRefused(
                    f"the scorer does not agree with itself on request {span.sequence.request} ({name} differs between "
                    "two identical passes), so it gives no verdict"
                )
