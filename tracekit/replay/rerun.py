"""The sharp lens: recorded tokens forced through the engine itself, and its values joined with the scored rollouts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracekit.diagnose.reran import ALONE, COMPOSED, F8, PREFILLED, UNCACHED, Reran, RerunOf
from tracekit.engines.env import EngineEnv, ensure, from_python
from tracekit.engines.talk import Talk
from tracekit.errors import ReplayRefused
from tracekit.replay.naming import of_engine, unnumbered
from tracekit.replay.rerun_job import run_forced
from tracekit.replay.rerun_passes import plan_passes
from tracekit.replay.rerun_recorded import Recorded, cannot_force
from tracekit.replay.rerun_settings import engine_arguments, environ_of, expected_settings, other_weights, unlike
from tracekit.replay.rollouts import Rollout, Rollouts
from tracekit.replay.stages import Group

if TYPE_CHECKING:
    from tracekit.trace.reader import Trace

Keys = Mapping[tuple[int, int], float]


def environment(engine: str | None, python: str | os.PathLike[str] | None) -> EngineEnv:
    """Return the environment that the re-run runs in, built where it is one of ours and not there.

    Raises:
        UsageError: there is no such engine.
        EngineEnvError: it cannot be had.
    """
    with Talk() as talk:
        return from_python(Path(python)) if python else ensure(engine or "v1", talk)


def run_again(
    trace: Trace, rollouts: Rollouts, env: EngineEnv, folders: Mapping[int, Path], group: Group, *, show_progress: bool
) -> Reran:
    """Force every engine's recorded tokens through `env`.

    Args:
        trace: that the rollouts were read from.
        rollouts: whose tokens are compared; all other requests are played, too, because they share steps and blocks.
        env: the environment to run in.
        folders: of the weights that are known, by number.
        group: their numbers to the oldest one with the same weights.
        show_progress: a line on stderr with the time that is left.

    Raises:
        ReplayRefused: an engine cannot be made the recorded one, or steps of it are not known.
    """
    engines = sorted({rollout.sequence.engine for rollout in rollouts.rollouts})
    recorded = [Recorded(trace, engine) for engine in engines]
    found, values = [], {how: np.full(_num_tokens(rollouts), np.nan) for how in (COMPOSED, UNCACHED, ALONE, PREFILLED)}
    for one in recorded:
        reason = cannot_force(one) or _not_of_kind(one, env)
        if reason:
            stopped = {COMPOSED: f"{reason} cannot be forced"}
            found.append(RerunOf(one.engine, env.vllm_version, 0, 0, 0, 0.0, 0, stopped))
            continue
        own = [unnumbered(r) for r in rollouts.rollouts if r.sequence.engine == one.engine]
        its_folders, its_group = of_engine(folders, group, one.engine)
        told, by_way = _one(one, own, env, _of_steps(one, its_folders, its_group), its_group, show_progress)
        found.append(told)
        _join(rollouts.rollouts, one.engine, by_way, values)
    return Reran(found, {how: own for how, own in values.items() if np.isfinite(own).any()})


def _one(
    recorded: Recorded,
    rollouts: Seq[Rollout],
    env: EngineEnv,
    folders: Mapping[int, str],
    group: Group,
    show_progress: bool,
) -> tuple[RerunOf, dict[str, Keys]]:
    started = time.monotonic()
    passes = plan_passes(recorded, rollouts, folders, group)
    job = {
        "kind": recorded.row["kind"],
        "engine_args": engine_arguments(recorded.config, passes.first, passes.room),
        "expected": expected_settings(recorded.config),
        "async_scheduling": recorded.plans_ahead,
        "model_class": recorded.worker.get("model"),
        "requests": recorded.requests(),
        "passes": [{"name": how, "events": events} for how, events in passes.events.items()],
    }
    environ = {**os.environ, **env.environ, **environ_of(recorded.row["kind"], recorded.config, recorded.worker)}
    made = run_forced(env.python, environ, job, passes.num_tokens, show_progress=show_progress)
    by_way: dict[str, Keys] = {
        how: {(request, at): value for request, at, value in own["tokens"]} for how, own in made["passes"].items()
    }
    found = {row["request"] for row in recorded.rows["cache"]}
    if UNCACHED in by_way:  # beside others that compute more, a request that found nothing differs by its batch alone
        by_way[UNCACHED] = {key: value for key, value in by_way[UNCACHED].items() if key[0] in found}
    composed, facts = made["passes"][COMPOSED], made["facts"]
    return RerunOf(
        engine=recorded.engine,
        version=str(facts["version"]),
        num_requests=len(recorded.rows["requests"]),
        num_steps=len({step for _, step in by_way[COMPOSED]}),
        num_tokens=sum(len(own) for own in by_way.values()),
        secs=time.monotonic() - started,
        stopped={how: own["stopped"] for how, own in made["passes"].items() if own["stopped"]},
        num_moved=_num_moved(recorded, composed["blocks"]),
        unlike=[
            *unlike(recorded.worker, json.loads(facts["worker"]), (recorded.row["engine_version"], facts["version"])),
            *other_weights(recorded.rows["fingerprints"], made["fingerprints"], folders),
        ],
    ), by_way


def _not_of_kind(recorded: Recorded, env: EngineEnv) -> str | None:
    kind = "v0" if env.vllm_version.startswith("0.8.") else "v1"
    if recorded.row["kind"] == kind:
        return None
    return f"what the scheduler of generation {recorded.row['kind']} did, in vLLM {env.vllm_version},"


def _of_steps(recorded: Recorded, folders: Mapping[int, Path], group: Group) -> dict[int, str]:
    """Folders of all versions that steps ran on, also those that sampled nothing that is scored."""
    known = {group(version): str(folder) for version, folder in folders.items()}
    missing = [version for version in recorded.versions if group(version) not in known]
    if missing:
        raise ReplayRefused(
            f"engine {recorded.engine} cannot be re-run: steps of it ran on weight version {missing[0]}, whose weights "
            f"were not given: add --weights {missing[0]}=FOLDER"
        )
    return {version: known[group(version)] for version in recorded.versions}


def _num_moved(recorded: Recorded, blocks: Iterable[list[Any]]) -> int:
    """Admissions whose hit lies elsewhere than was recorded."""
    there: dict[tuple[int, int], list[int]] = {}
    for row in recorded.rows["cache"]:
        if row["kv_group"] == 0:
            there.setdefault((row["engine_step"], row["request"]), []).append(row["block_id"])
    here = {(step, request): own for step, request, own in blocks}
    return sum(there[key] != own for key, own in here.items() if key in there)


def _num_tokens(rollouts: Rollouts) -> int:
    return sum(rollout.num_tokens for rollout in rollouts.rollouts)


def _join(rollouts: Seq[Rollout], engine: int, by_way: Mapping[str, Keys], values: Mapping[str, F8]) -> None:
    """Write what one engine said into the values of all tokens."""
    start = 0
    for rollout in rollouts:
        if rollout.sequence.engine == engine:
            request = rollout.sequence.request
            for how, own in by_way.items():
                at = rollout.engine_step.tolist() if how in (COMPOSED, UNCACHED) else range(rollout.num_tokens)
                values[how][start : start + rollout.num_tokens] = [own.get((request, i), np.nan) for i in at]
        start += rollout.num_tokens
