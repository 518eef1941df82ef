"""Which folder holds the weights of each version of a trace."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path

from tracekit.diagnose.result import Weights
from tracekit.errors import NoModelFolderError, ReplayRefused, UsageError
from tracekit.objects.address import is_url
from tracekit.replay.claims import Claim
from tracekit.replay.numbers import name_of

Given = Mapping[int, str | Path]


def needed_claims(claims: Mapping[int, Claim], given: Iterable[int], oldest: Mapping[int, int]) -> dict[int, Claim]:
    """Return one claim for each set of equal weights that no given folder holds: fingerprints come before labels.

    Args:
        claims: by weight version; see `find_claims`.
        given: versions whose folders were given, version 0 aside.
        oldest: see `same_weights`.
    """
    settled = {0, *(oldest.get(v, v) for v in given)}
    needed = {}
    for version, claim in sorted(claims.items(), key=lambda item: (not item[1].is_here, item[0])):
        group = oldest.get(version, version)
        if group not in settled:
            settled.add(group)
            needed[version] = claim
    return needed


def choose_weights(
    versions: Seq[int],
    oldest: Mapping[int, int],
    given: Given,
    claims: Mapping[int, Claim],
    models: Seq[str],
    attached: Collection[int] = (),
) -> list[Weights]:
    """Return where to take each version's weights from: its own folder, else that of a version with the same weights.

    Args:
        versions: those that sampled tokens.
        oldest: see `same_weights`.
        given: folders that the caller gave, by version: paths, or `s3://` URLs, which are not asked here.
        claims: see `needed_claims`.
        models: that the engines of the trace name; the weights of version 0 where none are given.
        attached: versions that engines had when a recorder was attached to them.

    Returns:
        One entry per version, and one for version 0 where its weights serve another.

    Raises:
        UsageError: weights are given for a version that nobody needs, or no model is given and the trace names none
            that is here.
        ReplayRefused: weights of a version are not known.
        NoModelFolderError: a folder is not there.
    """
    unused = sorted(set(given) - set(versions) - {oldest.get(v, v) for v in versions} - {0})
    if unused:
        raise UsageError(
            f"no scored token was sampled under weight version {_names(unused)}; the trace has {_names(versions)}"
        )
    of_group = {0: Weights(0, str(given[0]), "given")} if 0 in given else {}
    for version, folder in sorted(given.items()):
        of_group.setdefault(oldest.get(version, version), Weights(version, str(folder), "given"))
    for version, claim in sorted(claims.items()):
        if claim.is_here:
            group = oldest.get(version, version)
            of_group.setdefault(group, Weights(version, claim.checkpoint, "claim", label=claim.label))
    wanting = [v for v in versions if v not in given and oldest.get(v, v) not in of_group]
    if any(oldest.get(v, v) == 0 for v in wanting):
        of_group[0] = Weights(0, model_of(models), "trace")
    _refuse_unknown([v for v in wanting if oldest.get(v, v) != 0], claims, attached)
    found = {v: _of_version(v, oldest, given, of_group) for v in versions}
    if 0 not in found and any(taken.same_as == 0 for taken in found.values()):
        found[0] = of_group[0]
    return [_resolved(found[v]) for v in sorted(found)]


def model_of(models: Seq[str]) -> str:
    """Return the model folder that the engines of a trace name.

    Raises:
        UsageError: they name none, or several, or none that is here.
    """
    ask = "say which weights to score with (--model FOLDER)"
    if not models:
        raise UsageError(f"the trace does not name its engine's model: {ask}")
    if len(models) > 1:
        raise UsageError(f"the engines of this trace ran different models ({', '.join(models)}): {ask}")
    if not is_url(models[0]) and not Path(models[0]).is_dir():
        raise UsageError(f"the engine ran the model {models[0]}, which is not a folder on this machine: {ask}")
    return models[0]


def _refuse_unknown(missing: Seq[int], claims: Mapping[int, Claim], attached: Collection[int]) -> None:
    if missing:
        more = [f"{claims[v].checkpoint} is not here" for v in missing if v in claims]
        if found := [v for v in missing if v in attached]:
            more.append(f"{_names(found)} is what was there when the recorder was attached, and nobody said what it is")
        raise ReplayRefused(
            f"tokens were sampled under weight version {_names(missing)}, whose weights were not given: "
            f"add --weights {name_of(missing[0])}=FOLDER for each (the same folder, where the weights did not change)"
            + "".join(f"; {text}" for text in more)
        )


def _of_version(version: int, oldest: Mapping[int, int], given: Given, of_group: Mapping[int, Weights]) -> Weights:
    if version in given:
        return Weights(version, str(given[version]), "given")
    group = of_group[oldest.get(version, version)]
    if group.version == version:
        return group
    return Weights(version, group.folder, "same", same_as=oldest.get(version, group.version))


def _resolved(weights: Weights) -> Weights:
    if is_url(weights.folder):
        return weights
    folder = Path(weights.folder)
    if not folder.is_dir():
        raise NoModelFolderError(folder)
    return Weights(weights.version, str(folder.resolve()), weights.source, weights.label, weights.same_as)


def _names(versions: Seq[int]) -> str:
    return ", ".join(map(name_of, versions))
