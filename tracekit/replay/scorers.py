"""What a replay needs of a scorer: one at a time in memory, and that it agrees with itself."""

from __future__ import annotations

import resource
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from tracekit.errors import ModelError, ReplayRefused
from tracekit.replay.rollouts import Rollout
from tracekit.replay.sampling import pick
from tracekit.scoring.spans import Span, SpanScores, whole

_NUM_IDENTITY = 4
_IDENTITY_TOKENS = 64  # of each: the first ones tell as much as all, and a long rollout takes seconds
_IDENTITY_SHARE = 0.1


@dataclass(frozen=True)
class Model:
    """What a unit's weights are loaded as.

    Attributes:
        dtype: that the body computes in.
        weights: dtype that the stored weights are cast to first, as an engine received them; None: left as stored.
        in_halves: whether each sum of a float32 body's products is taken in two halves.
        head: dtype that the head computes in, float32 or bfloat16.
        rows: of the head, that are added up; None: all.
    """

    dtype: str
    weights: str | None = None
    in_halves: bool = False
    head: str = "float32"
    rows: int | None = None

    @property
    def arithmetic(self) -> str:
        """Its dtype, and the order of its sums where that is another one."""
        return f"{self.dtype}, sums in halves" if self.in_halves else self.dtype


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


Load = Callable[[Path, Model], ScorerLike]
"""Folder, and what its weights are loaded as, to scorer."""


class OneAtATime:
    """Loads scorers and keeps the last one: two bodies need not fit in memory together."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._key: tuple[Path, Model] | None = None
        self._scorer: ScorerLike | None = None

    def __call__(self, folder: Path, model: Model) -> ScorerLike:
        """Return the scorer of a folder."""
        if self._scorer is None or self._key != (folder, model):
            self._scorer = None
            self._scorer, self._key = self._load(folder, model), (folder, model)
        return self._scorer

    @property
    def device(self) -> str:
        """Torch's name of the device of the scorer that is kept; the CPU where none is."""
        return "cpu" if self._scorer is None else self._scorer.device

    def release(self) -> None:
        """Forget the scorer that is kept."""
        self._scorer = None


def num_threads() -> int:
    """Return how many threads torch computes with in this process."""
    import torch

    return torch.get_num_threads()


def torch_loader(device: str | None) -> Load:
    """Return what loads a scorer with torch and transformers.

    Raises:
        ModelError: one of the two is not installed.
    """
    try:
        from tracekit.scoring.scorer import Scorer
    except ImportError as error:
        raise ModelError(
            f"replay needs torch and transformers ({error}): pip install '.[replay]' of tracekit"
        ) from error
    from tracekit.scoring.arithmetic import IN_HALVES, bfloat16_arithmetic

    settled: list[str | None] = []  # by the first load; it goes with this loader to workers, who then do alike

    def load(folder: Path, model: Model) -> ScorerLike:
        arithmetic = IN_HALVES if model.in_halves else settled[0] if settled else None
        scorer = Scorer.load(
            folder,
            dtype=model.dtype,
            weights=model.weights,
            device=device,
            arithmetic=arithmetic,
            head=model.head,
            rows=model.rows,
        )
        if not settled:
            settled.append(bfloat16_arithmetic(scorer.model.body))
        return scorer

    return load


def identity_test(scorer: ScorerLike, rollouts: Seq[Rollout], max_batch_tokens: int) -> None:
    """Score the first tokens of a few rollouts twice in the same shape; they are a tenth of the run at most, but one.

    Raises:
        ReplayRefused: the two are not bit-equal, so that nothing the scorer says could be told from its own whims.
    """
    whole_run = sum(r.sequence.num_inputs for r in rollouts)
    lengths = np.array([min(r.num_prompt_tokens - 1 + _IDENTITY_TOKENS, r.sequence.num_inputs) for r in rollouts])
    every = range(len(rollouts))
    few = pick(every, lengths, lengths, max_tokens=None, max_cost=_IDENTITY_SHARE * whole_run)[:_NUM_IDENTITY]
    spans = [replace(whole(rollouts[i].sequence), stop=int(lengths[i])) for i in few]
    first = scorer.score(spans, max_batch_tokens=max_batch_tokens)
    second = scorer.score(spans, max_batch_tokens=max_batch_tokens)
    for span, one, other in zip(spans, first, second, strict=True):
        (a,), (b,) = one.readings, other.readings
        for name in ("raw_logprob", "forced_logprob"):
            if getattr(a, name).tobytes() != getattr(b, name).tobytes():
                raise ReplayRefused(
                    f"the scorer does not agree with itself on request {span.sequence.request} ({name} differs between "
                    "two identical passes), so it gives no verdict"
                )


def peak_bytes(device: str) -> int:
    """Return the most memory that this process has held so far, of the device's where that is a GPU."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
