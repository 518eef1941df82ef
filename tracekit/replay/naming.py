"""Rollouts and folders with numbers for weights in place of versions, where an engine's versions are its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any

from tracekit.replay.folders import model_of
from tracekit.replay.history import Block, Computed
from tracekit.replay.numbers import OWN, engine_of, number_of, version_of
from tracekit.replay.rollouts import I8, Rollout, Rollouts
from tracekit.replay.stages import Group

Folders = Mapping[int | tuple[int, int], str | Path]
"""By weight version, or by engine and weight version."""


def numbered(rollouts: Rollouts, given: Folders) -> tuple[Rollouts, dict[int, str | Path]]:
    """Return the rollouts with numbers in place of versions, and the folders by number.

    An engine that is named in `given` has numbers of its own for all of its versions; those that are not given for it
    alone are those of all.
    """
    engines = {key[0] for key in given if isinstance(key, tuple)}
    if not engines:
        return rollouts, {key: folder for key, folder in given.items() if isinstance(key, int)}
    found = replace(
        rollouts,
        rollouts=[_rollout(r, r.sequence.engine) if r.sequence.engine in engines else r for r in rollouts.rollouts],
        weight_changes=[_row(row, engines) for row in rollouts.weight_changes],
    )
    return found, _folders(found, rollouts.versions, given, engines)


def _row(row: dict[str, Any], engines: AbstractSet[int]) -> dict[str, Any]:
    engine, version = row["engine"], row["weight_version"]
    return {**row, "weight_version": number_of(engine, version) if engine in engines else version}


def _folders(
    found: Rollouts, versions: Iterable[int], given: Folders, engines: AbstractSet[int]
) -> dict[int, str | Path]:
    folders = {number_of(*key): folder for key, folder in given.items() if isinstance(key, tuple)}
    for_all = {key: folder for key, folder in given.items() if isinstance(key, int)}
    ran = set(found.versions)
    for engine in engines:
        for version in versions:
            number = number_of(engine, version)
            if version in for_all and number in ran:
                folders.setdefault(number, for_all[version])
        if number_of(engine, 0) in ran and number_of(engine, 0) not in folders:
            folders[number_of(engine, 0)] = model_of(found.models)
    own_alone = {version for version in for_all if version not in ran and version in set(versions)}
    return {**{version: folder for version, folder in for_all.items() if version not in own_alone}, **folders}


def _rollout(rollout: Rollout, engine: int) -> Rollout:
    numbers: I8 = rollout.weight_version + number_of(engine, 0)
    return replace(rollout, weight_version=numbers, history=tuple(_computed(c, engine) for c in rollout.history))


def _computed(computed: Computed, engine: int) -> Computed:
    found = tuple(_block(block, engine) for block in computed.found)
    return computed._replace(weight_version=number_of(engine, computed.weight_version), found=found)


def _block(block: Block, engine: int) -> Block:
    oldest, newest = (None if v is None else number_of(engine, v) for v in (block.oldest, block.newest))
    return block._replace(oldest=oldest, newest=newest)


def unnumbered(rollout: Rollout) -> Rollout:
    """Return a rollout with the versions that its engine knows; its history is left as it is."""
    return replace(rollout, weight_version=rollout.weight_version % OWN)


def of_engine(folders: Mapping[int, Path], group: Group, engine: int) -> tuple[dict[int, Path], Group]:
    """Return the folders by an engine's own versions, and which of these have the same weights."""
    own = {version_of(number): folder for number, folder in folders.items() if engine_of(number) == engine}
    if own:
        return own, lambda version: group(number_of(engine, version))
    return {number: folder for number, folder in folders.items() if engine_of(number) is None}, group
