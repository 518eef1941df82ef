"""Score rollouts behind what lay before them in the trainer's batch: a pack's earlier sequences, or left padding.

A trainer whose attention is not blocked there sees it. It is only scored where the dump tells what lay before, and
where the trainer's values are off already: a few rollouts are enough to tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from pathlib import Path

import numpy as np

from tracekit.diagnose.explain.trainer_values import PACKED, PADDED
from tracekit.diagnose.view import TrainerView
from tracekit.replay.rollouts import Rollout
from tracekit.replay.running import join
from tracekit.replay.scorers import Load, Model
from tracekit.replay.stages import Group
from tracekit.replay.units import Job, Stage, Unit, score_unit
from tracekit.scores import Scores, Values
from tracekit.trainer.types import Dump

NUM_ROLLOUTS = 16
MOST_BEFORE = 2048  # positions


def leak_scores(
    rollouts: Seq[Rollout], view: TrainerView, dump: Dump, *, load: Load, folders: Mapping[int, Path], group: Group,
    model: Model, max_batch_tokens: int,
) -> dict[str, Scores[Values]]:  # fmt: skip
    """Return the scores of the passes that can be made, over the tokens of all rollouts."""
    bounds = np.cumsum([0, *(r.num_tokens for r in rollouts)])
    jobs: dict[str, list[Job]] = {PACKED: [], PADDED: []}
    for rollout, start in zip(rollouts, bounds[:-1].tolist(), strict=True):
        own = int(view.sequence[start])
        if own < 0 or not view.paired[start] or own >= len(dump.samples):
            continue
        before, name = dump.samples[own].before, PADDED if dump.samples[own].is_padding else PACKED
        if 0 < before.size <= MOST_BEFORE and len(jobs[name]) < NUM_ROLLOUTS:
            jobs[name].append(_job(rollout, before, name, group))
    found: dict[str, Scores[Values]] = {}
    for which in filter(None, jobs.values()):
        unit = Unit(model, max_batch_tokens, False, tuple(which))
        found |= join(rollouts, [score_unit(load, folders, unit)])
    return found


def _job(rollout: Rollout, before: np.ndarray, name: str, group: Group) -> Job:
    own = rollout.sequence
    prompt = np.concatenate([before.astype(np.uint32), own.prompt_token_ids])
    sequence = replace(own, prompt_token_ids=prompt)
    stage = Stage(group(int(rollout.weight_version[0])), 0, sequence.num_inputs, (0, rollout.num_tokens))
    return Job(sequence, (stage,), ((name, own.params),))
