"""From passes and rollouts to units: who shares a forward, who goes together, and in which order models are needed."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import replace
from itertools import groupby

import numpy as np

from tracekit.replay.ladder import Forward, Pass
from tracekit.replay.rollouts import Rollout
from tracekit.replay.sampling import pick
from tracekit.replay.stages import AS_RECORDED, Group, stages_of
from tracekit.replay.units import Job, Stage, Unit
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
    everyone = trainer, list(range(len(rollouts)))
    return _planned(rollouts, [everyone, *_chosen(rollouts, trainer, others, group)], group)


def plan_further_units(rollouts: Seq[Rollout], trainer: Pass, further: Seq[Pass], group: Group) -> list[Unit]:
    """Return what is to score for passes that come after a first look.

    Args:
        rollouts: all of the run.
        trainer: the trainer's pass, which was scored.
        further: the others.
        group: weight version to the oldest one with the same weights.
    """
    return _planned(rollouts, _chosen(rollouts, trainer, further, group), group)


def _chosen(rollouts: Seq[Rollout], trainer: Pass, others: Seq[Pass], group: Group) -> list[tuple[Pass, list[int]]]:
    """Each pass with the rollouts that it scores; what it may cost is a share of the trainer's pass."""
    units = _units(_jobs(rollouts, [(trainer, range(len(rollouts)))], group), trainer.forward)
    whole = sum(unit.cost for unit in units)
    return [(how, _pick(rollouts, how, whole, group)) for how in others]


def _planned(rollouts: Seq[Rollout], chosen: Seq[tuple[Pass, list[int]]], group: Group) -> list[Unit]:
    order = {how.forward: None for how, _ in chosen}
    units: list[Unit] = []
    for forward in order:
        asked = [(how, which) for how, which in chosen if how.forward == forward]
        units += _units(_jobs(rollouts, asked, group), forward)
    models = list(dict.fromkeys(forward[0] for forward in order))
    return sorted(units, key=lambda unit: (models.index(unit.model), unit.versions))


def num_shared(units: Iterable[Unit]) -> tuple[int, int]:
    """Return how many positions the units run, and how many they would where no prefix is shared."""
    units = list(units)
    return sum(unit.cost for unit in units), sum(job.num_run for unit in units for job in unit.jobs)


def _pick(rollouts: Seq[Rollout], how: Pass, whole: int, group: Group) -> list[int]:
    """Indices of the rollouts that a pass scores."""
    stages = [_stages(rollout, how, group) for rollout in rollouts]
    candidates = list(range(len(rollouts)) if how.only is None else how.only)
    if how.kv != AS_RECORDED or how.instead:
        candidates = [i for i in candidates if stages[i] != stages_of(rollouts[i], AS_RECORDED, group)]
    return pick(
        candidates,
        np.array([r.num_tokens for r in rollouts]),
        np.array([sum(stage.stop - stage.start for stage in own) for own in stages]),
        max_tokens=how.num_tokens,
        max_cost=None if how.cost is None else how.cost * whole,
        at_least=how.at_least,
        least_tokens=how.least_tokens,
    )


def _stages(rollout: Rollout, how: Pass, group: Group) -> tuple[Stage, ...]:
    """The stages of a rollout in a pass, with the weights that it takes instead."""
    instead = dict(how.instead)
    return stages_of(rollout, how.kv, lambda version: instead.get(group(version), group(version)))


def _jobs(rollouts: Seq[Rollout], asked: Seq[tuple[Pass, Iterable[int]]], group: Group) -> list[Job]:
    """One job for each rollout that a pass asks for; all passes have the same forward."""
    readings: dict[int, list[Pass]] = {}
    for how, which in asked:
        for i in which:
            readings.setdefault(i, []).append(how)
    prompts = dict(asked[0][0].prompts) if asked else {}
    return [
        Job(
            _behind(rollouts[i].sequence, prompts.get(i)),
            _stages(rollouts[i], passes[0], group),
            tuple((how.name, how.sampling(rollouts[i].sequence.params)) for how in passes),
            next((how.name for how in passes if how.profile), None),
        )
        for i, passes in sorted(readings.items())
    ]


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
