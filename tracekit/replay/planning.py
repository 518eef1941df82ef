"""From passes and rollouts to units: who shares a forward, who goes together, and in which order models are needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import groupby

import numpy as np

from tracekit.replay.ladder import Forward, Pass
from tracekit.replay.rollouts import Rollout
from tracekit.replay.sampling import pick
from tracekit.replay.stages import AS_RECORDED, Group, KvHow, stages_of
from tracekit.replay.units import Job, Key, Stage, Unit
from tracekit.scoring.types import Sequence

POOL_TOKENS = 16384  # positions whose KV is held at a time for the next weights: about 2 GiB of a model of 7B


def plan_units(rollouts: Seq[Rollout], passes: Seq[Pass], group: Group) -> list[Unit]:
    """Return what is to score, such that each model is loaded as rarely as possible.

    Args:
        rollouts: all of the run; how their KV came about must be known.
        passes: the trainer's first.
        group: weight version to the oldest one with the same weights.
    """
    trainer, *others = passes
    stages = _Stages(rollouts, group)
    whole = _whole(stages, trainer)
    return _planned(stages, [(trainer, range(len(rollouts))), *_chosen(stages, whole, others)], whole, trainer.forward)


def plan_further_units(rollouts: Seq[Rollout], trainer: Pass, further: Seq[Pass], group: Group) -> list[Unit]:
    """Return what is to score for passes that come after a first look.

    Args:
        rollouts: all of the run.
        trainer: the trainer's pass, which was scored.
        further: the others.
        group: weight version to the oldest one with the same weights.
    """
    stages = _Stages(rollouts, group)
    return _planned(stages, _chosen(stages, _whole(stages, trainer), further))


class _Stages:
    """The stages of rollouts in passes, found out once for all passes that agree on them."""

    def __init__(self, rollouts: Seq[Rollout], group: Group) -> None:
        self.rollouts, self._group = rollouts, group
        self._found: dict[tuple[KvHow, tuple[tuple[int, int], ...], int], tuple[Stage, ...]] = {}

    def of(self, i: int, kv: KvHow, instead: tuple[tuple[int, int], ...] = ()) -> tuple[Stage, ...]:
        """Return the stages of rollout i over KV that came about so, with the weights that are taken instead."""
        key = kv, instead, i
        if key not in self._found:
            others = dict(instead)
            self._found[key] = stages_of(self.rollouts[i], kv, lambda version: self._taken(version, others))
        return self._found[key]

    def _taken(self, version: int, instead: Mapping[int, int]) -> int:
        own = self._group(version)
        return instead.get(own, own)


def _whole(stages: _Stages, trainer: Pass) -> list[Unit]:
    """The units of the trainer's pass, which scores everything; nothing asks for their scores yet."""
    return _units(_jobs(stages, trainer, range(len(stages.rollouts))), trainer.forward)


def _chosen(stages: _Stages, whole: Iterable[Unit], others: Seq[Pass]) -> list[tuple[Pass, Seq[int]]]:
    """Each pass with the rollouts that it scores; what it may cost is a share of the trainer's pass."""
    cost = sum(unit.cost for unit in whole)
    return [(how, _pick(stages, how, cost)) for how in others]


def _planned(
    stages: _Stages, chosen: Seq[tuple[Pass, Seq[int]]], whole: Seq[Unit] = (), of: Forward | None = None
) -> list[Unit]:
    """The units of all passes; those of one forward may be there already."""
    order = {how.forward: None for how, _ in chosen}
    units: list[Unit] = []
    for forward in order:
        asked = [(how, which) for how, which in chosen if how.forward == forward]
        every = sorted({i for _, which in asked for i in which})
        own = whole if forward == of else _units(_jobs(stages, asked[0][0], every), forward)
        units += _asking(stages, own, asked)
    models = list(dict.fromkeys(forward[0] for forward in order))
    return sorted(units, key=lambda unit: (models.index(unit.model), unit.versions))


def num_shared(units: Iterable[Unit]) -> tuple[int, int]:
    """Return how many positions the units run, and how many they would where no prefix is shared."""
    units = list(units)
    return sum(unit.cost for unit in units), sum(job.num_run for unit in units for job in unit.jobs)


def _pick(stages: _Stages, how: Pass, whole: int) -> list[int]:
    """Indices of the rollouts that a pass scores."""
    rollouts = stages.rollouts
    own = [stages.of(i, how.kv, how.instead) for i in range(len(rollouts))]
    candidates = list(range(len(rollouts)) if how.only is None else how.only)
    if how.kv != AS_RECORDED or how.instead:
        candidates = [i for i in candidates if own[i] != stages.of(i, AS_RECORDED)]
    return pick(
        candidates,
        np.array([r.num_tokens for r in rollouts]),
        np.array([sum(stage.stop - stage.start for stage in of_rollout) for of_rollout in own]),
        max_tokens=how.num_tokens,
        max_cost=None if how.cost is None else how.cost * whole,
        at_least=how.at_least,
        least_tokens=how.least_tokens,
    )


def _jobs(stages: _Stages, how: Pass, which: Iterable[int]) -> list[Job]:
    """One job for each rollout of a forward, for which nothing asks yet."""
    prompts = dict(how.prompts)
    return [
        Job(_behind(stages.rollouts[i].sequence, prompts.get(i)), stages.of(i, how.kv, how.instead), ()) for i in which
    ]


def _asking(stages: _Stages, units: Iterable[Unit], asked: Seq[tuple[Pass, Iterable[int]]]) -> list[Unit]:
    """The same units with the passes that ask for the scores of their jobs."""
    passes: dict[Key, list[Pass]] = {}
    for how, which in asked:
        for i in which:
            sequence = stages.rollouts[i].sequence
            passes.setdefault((sequence.engine, sequence.request), []).append(how)

    def asking(job: Job) -> Job:
        own = passes[job.key]
        readings = tuple((how.name, how.sampling(job.sequence.params)) for how in own)
        return replace(job, readings=readings, profile=next((how.name for how in own if how.profile), None))

    return [replace(unit, jobs=tuple(map(asking, unit.jobs))) for unit in units]


def _behind(sequence: Sequence, prompt: tuple[int, ...] | None) -> Sequence:
    """The sequence behind another prompt of the same length."""
    if prompt is None:
        return sequence
    return replace(sequence, prompt_token_ids=np.array(prompt, dtype=sequence.prompt_token_ids.dtype))


def _units(jobs: Iterable[Job], forward: Forward) -> list[Unit]:
    """Whole groups go together until the next does not fit; one that does not fit at all is a unit of its own."""
    model, max_batch_tokens, share, *_ = forward
    units: list[Unit] = []
    for (mixed, _), own in groupby(sorted(jobs, key=_place), key=lambda job: _place(job)[:2]):
        room = 0
        for _, equal in groupby(own, key=lambda job: _prompt(job.sequence)):
            unit = Unit(model, max_batch_tokens, share, tuple(equal))
            if unit.cost <= room:
                units[-1] = replace(unit, jobs=units[-1].jobs + unit.jobs)
            else:
                units.append(unit)
                room = POOL_TOKENS if mixed else max_batch_tokens
            room -= unit.cost
    return units


def _place(job: Job) -> tuple[bool, tuple[int, ...], bytes]:
    """Rollouts of the same versions come together, nested prompts one after the other."""
    return len(job.stages) > 1, tuple(stage.version for stage in job.stages), _prompt(job.sequence)


def _prompt(sequence: Sequence) -> bytes:
    return sequence.prompt_token_ids.astype(">u4").tobytes()
