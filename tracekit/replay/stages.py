"""How a rollout's KV came about, as stages that a scorer can repeat: by the trace, and by two other hypotheses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import numpy as np

from tracekit.diagnose.skipped import Skipped
from tracekit.errors import ReplayRefused
from tracekit.replay.history import Block, Computed
from tracekit.replay.rollouts import Rollout, Rollouts
from tracekit.replay.units import Stage

KvHow = Literal["as recorded", "recomputed", "kept"]
"""As the trace tells; every token over KV that its own weights computed; or over all that older weights computed."""
AS_RECORDED: KvHow = "as recorded"
RECOMPUTED: KvHow = "recomputed"
KEPT: KvHow = "kept"

Group = Callable[[int], int]
"""Weight version to the oldest one with the same weights."""
_Run = tuple[int, int, int, int]  # version, start, stop, first engine step


class UnknownKvError(Exception):
    """The trace does not tell under which weights a rollout's KV was computed."""


def stages_of(rollout: Rollout, how: KvHow, group: Group) -> tuple[Stage, ...]:
    """Return the stages of a rollout under a hypothesis.

    Raises:
        UnknownKvError: only of what was recorded: a block of KV holds parts by several weights, or by unknown ones.
    """
    if how == AS_RECORDED and rollout.history:
        return _as_recorded(rollout, group)
    return tuple(_of_tokens(rollout, group, keep=how == KEPT))


def leave_out_unknown(rollouts: Rollouts, group: Group) -> Rollouts:
    """Return the rollouts whose KV can be repeated; the others are counted among the skipped.

    Raises:
        ReplayRefused: none is left.
    """
    known = [rollout for rollout in rollouts.rollouts if _is_known(rollout, group)]
    missing = len(rollouts.rollouts) - len(known)
    if not missing:
        return rollouts
    skip = Skipped("mixed kv", None, missing)
    if not known:
        raise ReplayRefused(f"no recorded request can be scored ({skip.count} {skip.what})")
    return replace(rollouts, rollouts=known, skipped=[*rollouts.skipped, skip])


def forget_kv(rollouts: Rollouts) -> Rollouts:
    """Return the rollouts without the history of their KV, for a scorer that cannot go on from KV of other weights."""
    return replace(rollouts, rollouts=[replace(rollout, history=()) for rollout in rollouts.rollouts])


def num_unknown(rollouts: Rollouts, group: Group) -> int:
    """Return how many rollouts several weights sampled without a history of their KV."""
    return sum(not r.history and len(set(map(group, r.versions))) > 1 for r in rollouts.rollouts)


def _is_known(rollout: Rollout, group: Group) -> bool:
    try:
        stages_of(rollout, AS_RECORDED, group)
    except UnknownKvError:
        return False
    return True


def _of_tokens(rollout: Rollout, group: Group, *, keep: bool) -> Iterator[Stage]:
    """One stage for each run of tokens of the same version."""
    changes = [0, *(np.flatnonzero(np.diff(rollout.weight_version)) + 1).tolist()]
    weights = [group(int(rollout.weight_version[at])) for at in changes]
    own = [i for i, now in enumerate(weights) if not i or now != weights[i - 1]]
    for i, end in zip(own, [*(changes[after] for after in own[1:]), rollout.num_tokens], strict=True):
        first = changes[i]
        start = rollout.num_prompt_tokens + first - 1 if keep and first else 0
        yield Stage(weights[i], start, rollout.num_prompt_tokens + end - 1, (first, end))


def _as_recorded(rollout: Rollout, group: Group) -> tuple[Stage, ...]:
    runs: list[_Run] = []
    held: list[_Run] = []  # what the request's KV is, position by position
    for computed in rollout.history:
        if computed.found:
            base = _resolve(computed, held, group)
            if _merged(base) != _merged(_truncated(held, computed.start)):
                for run in base:
                    _append(runs, run)
            held = base
        held = _truncated(held, computed.start)
        if (held[-1][2] if held else 0) != computed.start:
            raise UnknownKvError
        run = group(computed.weight_version), computed.start, computed.stop, computed.engine_step
        _append(runs, run)
        held.append(run)
    return _needed(_owned(rollout, runs, group))


def _append(runs: list[_Run], run: _Run) -> None:
    """Add a run, or let the last one go on where it is of the same weights over the same KV."""
    version, start, stop, _ = run
    if runs:
        last_version, last_start, last_stop, step = runs[-1]
        if version == last_version and last_start <= start <= last_stop:
            runs[-1] = last_version, last_start, max(stop, last_stop), step
            return
    runs.append(run)


def _resolve(computed: Computed, held: list[_Run], group: Group) -> list[_Run]:
    """The KV before `computed`, from the blocks that were found; a mixed block must be the request's own."""
    base: list[_Run] = []
    for block in computed.found:
        if block.oldest is None or block.newest is None:
            raise UnknownKvError
        own = _within(held, block)
        if group(block.oldest) == group(block.newest):
            part = [(group(block.oldest), block.start, block.stop, computed.engine_step)]
        elif own and {group(block.oldest), group(block.newest)} == {own[0][0], own[-1][0]}:
            part = own
        else:
            raise UnknownKvError
        base += [(version, start, stop, computed.engine_step) for version, start, stop, _ in part]
    if any(a[0] > b[0] for a, b in pairwise(base)):
        raise UnknownKvError  # a block is older than what now lies before it: what lay there then is gone
    return _truncated(base, computed.start)


def _merged(runs: list[_Run]) -> list[tuple[int, int]]:
    """Version and end of each part, neighbors of the same version as one."""
    ends = [(version, stop) for version, _, stop, _ in runs]
    return [end for end, after in pairwise([*ends, (-1, 0)]) if end[0] != after[0]]


def _within(held: list[_Run], block: Block) -> list[_Run]:
    """What the request itself had computed of a block; empty where not all of it."""
    parts = [(v, max(a, block.start), min(b, block.stop), step) for v, a, b, step in held]
    parts = [part for part in parts if part[1] < part[2]]
    return parts if sum(b - a for _, a, b, _ in parts) == block.stop - block.start else []


def _truncated(held: list[_Run], length: int) -> list[_Run]:
    return [(v, a, min(b, length), step) for v, a, b, step in held if a < length]


def _owned(rollout: Rollout, runs: list[_Run], group: Group) -> list[Stage]:
    """Stages with the tokens that each sampled: those of its engine steps."""
    owner = np.searchsorted([run[3] for run in runs], rollout.engine_step, side="right") - 1
    stages = []
    for number, (version, start, stop, _) in enumerate(runs):
        own = np.flatnonzero(owner == number)
        outputs = (int(own[0]), int(own[-1]) + 1) if own.size else (0, 0)
        stage = Stage(version, start, min(stop, rollout.sequence.num_inputs), outputs)
        inputs = np.array(outputs) + rollout.num_prompt_tokens - 1
        if own.size and (
            not (stage.start <= inputs[0] and inputs[1] <= stage.stop)
            or any(group(int(v)) != version for v in np.unique(rollout.weight_version[own]))
        ):
            raise UnknownKvError
        stages.append(stage)
    if np.any(owner < 0):
        raise UnknownKvError
    return stages


def _needed(stages: list[Stage]) -> tuple[Stage, ...]:
    """The stages that sampled tokens, and those whose KV such a one goes on from."""
    kept: list[Stage] = []
    for stage in reversed(stages):
        if stage.outputs[1] > stage.outputs[0] or (kept and kept[-1].start > 0):
            kept.append(stage)
    return tuple(reversed(kept))
