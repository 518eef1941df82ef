"""The weights that a trace is scored with: which folders, of which versions, and what is known of them beforehand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracekit.diagnose.facts import Facts, Update
from tracekit.diagnose.result import Weights
from tracekit.errors import ModelError
from tracekit.objects.address import is_url
from tracekit.objects.fetch import local_folder, quiet
from tracekit.replay.checkpoints import architecture, stored_dtype
from tracekit.replay.claims import find_claims
from tracekit.replay.facts import of_checkpoints, read_facts
from tracekit.replay.fingerprints import arrived
from tracekit.replay.folders import choose_weights, needed_claims
from tracekit.replay.naming import Folders, numbered
from tracekit.replay.numbers import name_of, version_of
from tracekit.replay.progress import talk
from tracekit.replay.rollouts import Rollouts
from tracekit.replay.stages import Group
from tracekit.replay.versions import same_weights

if TYPE_CHECKING:
    from tracekit.trace.reader import Trace


@dataclass(frozen=True)
class Located:
    """Rollouts whose weights are here.

    Attributes:
        rollouts: with weight versions as numbers; see `tracekit.replay.numbers`.
        weights: where those of each number were taken from.
        folders: on this machine, by number.
        oldest: each number to the oldest one with the same folder.
        known: all folders with weights, and what a verdict calls them.
        facts: what the trace and the folders tell.
    """

    rollouts: Rollouts
    weights: list[Weights]
    folders: dict[int, Path]
    oldest: dict[int, int]
    known: dict[Path, str]
    facts: Facts

    @property
    def group(self) -> Group:
        """Versions whose weights are in the same folder are one."""
        return lambda version: self.oldest.get(version, version)

    @property
    def first(self) -> Path:
        """The folder of the first version that sampled."""
        return self.folders[self.rollouts.versions[0]]


def locate(
    trace: Trace, rollouts: Rollouts, given: Folders, trainer_config: str | Path | None, *, show_progress: bool
) -> Located:
    """Find the weights of every version: given, of the same fingerprints, claimed, named by the trace.

    Args:
        trace: that the rollouts were read from.
        rollouts: as they were read.
        given: folders by version, or by engine and version.
        trainer_config: the trainer's model folder, to be compared with what the engine ran.
        show_progress: tell of copies from object stores.

    Raises:
        ReplayRefused, UsageError: as `choose_weights`.
        ModelError: the folders of an engine's versions are not of one architecture, or as `stored_dtype`.
        StoreError, CacheError: what lies behind a URL cannot be had.
    """
    rollouts, named = numbered(rollouts, given)
    same = same_weights(rollouts.weight_changes, rollouts.ran)
    claims = needed_claims(find_claims(rollouts.weight_changes, rollouts.ran), set(named) - {0}, same)
    attached = {int(row["weight_version"]) for row in rollouts.weight_changes if row["method"] == "attach"}
    taken = choose_weights(rollouts.versions, same, named, claims, rollouts.models, attached)
    folders = {weights.version: local_folder(weights.folder, talk if show_progress else quiet) for weights in taken}
    _check_alike(rollouts, folders)
    known = _known(rollouts, folders)
    taken = [replace(w, stored=stored_dtype(folders[w.version]), received=rollouts.dtype) for w in taken]
    facts = replace(
        read_facts(trace, folders[min(folders)], trainer_config),
        **_checkpoints(trace, rollouts, folders, known),
        updates=_updates(taken, folders),
    )
    oldest = {version: min(v for v, path in folders.items() if path == folders[version]) for version in folders}
    return Located(rollouts, taken, folders, oldest, known, facts)


def _check_alike(rollouts: Rollouts, folders: Mapping[int, Path]) -> None:
    """Refuse weights that cannot have come by an update: the KV of those before would not fit them."""
    for _, ran in groupby(sorted(rollouts.ran), key=itemgetter(0)):
        (_, first), *others = ran
        before = architecture(folders[first])
        for _, number in others:
            own = architecture(folders[number])
            for what in before.keys() & own.keys():
                if own[what] != before[what]:
                    raise ModelError(
                        f"an update changes no architecture, but the folder for weight version {name_of(number)} has "
                        f"{what} {own[what]} and that for {name_of(first)} {before[what]}: {folders[number]}"
                    )


def _updates(taken: Sequence[Weights], folders: Mapping[int, Path]) -> list[Update]:
    """What each update from one folder to the next became, where the engine received a narrower type."""
    cast = {w.version: w.received for w in taken if w.is_cast and w.received}
    return [
        Update(version_of(newer), *arrived(folders[older], folders[newer], cast[newer]))
        for older, newer in pairwise(sorted(cast))
        if folders[older] != folders[newer]
    ]


def _known(rollouts: Rollouts, folders: Mapping[int, Path]) -> dict[Path, str]:
    """All folders with weights that are known, and what a verdict calls them."""
    first: dict[Path, str] = {}
    for number, folder in sorted(folders.items()):
        first.setdefault(folder.resolve(), f"the folder for weight version {name_of(number)}")
    for model in rollouts.models:
        if not is_url(model) and Path(model).is_dir():
            first.setdefault(Path(model).resolve(), "the model that the trace names")
    return first


def _checkpoints(
    trace: Trace, rollouts: Rollouts, folders: Mapping[int, Path], known: Mapping[Path, str]
) -> dict[str, Any]:
    """The fingerprints of all folders that are known, and which of them each engine's version is scored with."""
    scored = {(engine, version_of(number)): known[folders[number].resolve()] for engine, number in rollouts.ran}
    return {"checkpoints": of_checkpoints(trace, {name: folder for folder, name in known.items()}), "scored": scored}
