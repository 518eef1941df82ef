"""The unit of work of a replay: some rollouts, the forwards that score them, and what passes ask of each.

A unit is whole groups of rollouts with an equal prompt, as many as fill a batch, or a pool of rollouts whose KV
comes from several weight versions. It can be pickled and depends on nothing beside it, so the local loop, a resumed run
and workers elsewhere all map `score_unit` and join what it returns by key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tracekit.replay.scorers import Load, Model
from tracekit.scores import Scores, Values, put, unscored
from tracekit.scoring.layout import WIDTH
from tracekit.scoring.params import Params
from tracekit.scoring.spans import Span
from tracekit.scoring.types import Sequence

if TYPE_CHECKING:
    from tracekit.scoring.kv import KV

Key = tuple[int, int]  # engine, request
UnitScores = dict[Key, dict[str, Scores[Values]]]
"""By rollout, then by the name of the pass: scores of its T tokens."""


@dataclass(frozen=True)
class Stage:
    """Input positions start..stop of a rollout, computed under one weight version over the KV of the stage before.

    Attributes:
        version: its weights; the oldest number of those with the same folder.
        start: first position that runs; the KV of those before it is kept from the stage before.
        stop: one beyond the last.
        outputs: first, and one beyond the last, index into the completion of the tokens that it sampled.
    """

    version: int
    start: int
    stop: int
    outputs: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Job:
    """One rollout to score.

    Attributes:
        sequence: its prompt and completion.
        stages: how its KV and its tokens came about, in order.
        readings: how its sampling parameters are read, by the name of the pass that asks.
        profile: the pass of these that asks for a profile of the raw logits; None for none.
    """

    sequence: Sequence
    stages: tuple[Stage, ...]
    readings: tuple[tuple[str, Params], ...]
    profile: str | None = None

    @property
    def key(self) -> Key:
        """What the scores are joined by."""
        return self.sequence.engine, self.sequence.request

    @property
    def num_run(self) -> int:
        """Positions that run, where no prefix is shared."""
        return sum(stage.stop - stage.start for stage in self.stages)

    @property
    def num_scored(self) -> int:
        """Tokens that its forwards score: one that two stages run counts twice."""
        scored = [self.sequence.outputs(stage.start, stage.stop) for stage in self.stages]
        return sum(end - first for first, end in scored)


@dataclass(frozen=True, eq=False)
class Unit:
    """Jobs that are scored with the same kind of model, in batches of the same shape.

    Attributes:
        model: what the weights are loaded as.
        max_batch_tokens: tokens that go through the body together.
        share: whether prefixes that jobs have in common run once.
        jobs: with `share`, all that have an equal prompt; more than one stage each, or one of the same version.
    """

    model: Model
    max_batch_tokens: int
    share: bool
    jobs: tuple[Job, ...]

    @property
    def versions(self) -> tuple[int, ...]:
        """Weight versions that are needed, ascending."""
        return tuple(sorted({stage.version for job in self.jobs for stage in job.stages}))

    @property
    def num_run_tokens(self) -> int:
        """Tokens that its forwards score."""
        return sum(job.num_scored for job in self.jobs)

    def asks(self, name: str) -> bool:
        """Whether a pass of this name reads its scores."""
        return any(name == read for job in self.jobs for read, _ in job.readings)

    @property
    def cost(self) -> int:
        """Positions that run; a prompt that jobs share counts once."""
        saved, seen = 0, set()
        for job in self.jobs if self.share else ():
            start = job.sequence.prompt_token_ids.tobytes(), job.stages[0].version
            if start in seen:
                saved += min(len(job.sequence.prompt_token_ids) - 1, job.stages[0].stop)
            seen.add(start)
        return sum(job.num_run for job in self.jobs) - saved

    def digest(self) -> str:
        """Return what stands for all that a unit asks, 32 hex digits: equal where the scores would be."""
        hashed = blake2b(repr((self.model, self.max_batch_tokens, self.share)).encode(), digest_size=16)
        for job in self.jobs:
            hashed.update(repr((job.key, job.stages, job.readings, job.profile)).encode())
            for ids in (job.sequence.prompt_token_ids, job.sequence.token_ids):
                hashed.update(len(ids).to_bytes(8, "little") + ids.astype("<u4").tobytes())
        return hashed.hexdigest()


def score_unit(
    load: Load, folders: Mapping[int, Path], unit: Unit, on_tokens: Callable[[int], None] | None = None
) -> UnitScores:
    """Score a unit, one weight version after another, so that one model at a time is needed.

    Args:
        load: folder and kind of model to scorer.
        folders: of each weight version that the unit needs.
        unit: what to score.
        on_tokens: told of scored tokens as they are done.
    """
    found = {
        job.key: {
            name: unscored(len(job.sequence.token_ids), WIDTH if name == job.profile else 0) for name, _ in job.readings
        }
        for job in unit.jobs
    }
    todo: list[tuple[Job, int, KV | None]] = [(job, 0, None) for job in unit.jobs]
    while todo:
        version = min(job.stages[at].version for job, at, _ in todo)
        now = [(job, at, kv) for job, at, kv in todo if job.stages[at].version == version]
        todo = [waiting for waiting in todo if waiting[0].stages[waiting[1]].version != version]
        scorer = load(folders[version], unit.model)
        spans = [_span(job, at, kv) for job, at, kv in now]
        scores = scorer.score(spans, max_batch_tokens=unit.max_batch_tokens, share=unit.share, on_tokens=on_tokens)
        for (job, at, _), span, its_scores in zip(now, spans, scores, strict=True):
            first, end = job.stages[at].outputs
            rows = slice(first - span.outputs[0], end - span.outputs[0])
            for (name, _), reading in zip(job.readings, its_scores.readings, strict=True):
                own = reading.each(itemgetter(rows))
                if name == job.profile:  # a scorer that makes no profiles leaves it NaN
                    missing = np.full((end - first, WIDTH), np.nan, np.float32)
                    own = replace(own, profile=missing if its_scores.profile is None else its_scores.profile[rows])
                put(found[job.key][name], slice(first, end), own)
            if at + 1 < len(job.stages):
                todo.append((job, at + 1, its_scores.kv))
    return found


def _span(job: Job, at: int, kv: KV | None) -> Span:
    """The stage as a scorer takes it; its KV is kept where the next stage goes on from it."""
    stage = job.stages[at]
    return Span(
        sequence=job.sequence,
        readings=tuple(params for _, params in job.readings),
        start=stage.start,
        stop=stage.stop,
        past=kv.truncated(stage.start) if kv is not None and stage.start else None,
        keep_kv=at + 1 < len(job.stages) and job.stages[at + 1].start > 0,
        profile=job.profile is not None,
    )
