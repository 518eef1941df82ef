"""Which folder holds the weights of each version of a trace."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from pathlib import Path

from tracekit.errors import ModelError, ReplayRefused, UsageError
from tracekit.replay.claims import Claim

__all__ = ["choose_folders", "needed_claims"]


def needed_claims(
    claims: Mapping[int, Claim], weights: Mapping[int, str | Path], oldest: Mapping[int, int]
) -> dict[int, Claim]:
    """Return one claim for each set of equal weights that no given folder holds: fingerprints come before labels.

    Args:
        claims: by weight version; see `find_claims`.
        weights: folders that were given by version, those of version 0 aside.
        oldest: see `same_weights`.
    """
    settled = {0, *(oldest.get(v, v) for v in weights)}
    needed = {}
    for version, claim in sorted(claims.items(), key=lambda item: (not item[1].is_here, item[0])):
        group = oldest.get(version, version)
        if group not in settled:
            settled.add(group)
            needed[version] = claim
    return needed


def choose_folders(
    versions: Seq[int],
    oldest: Mapping[int, int],
    model: Path,
    weights: Mapping[int, str | Path],
    claims: Mapping[int, Claim],
) -> dict[int, Path]:
    """Return the folder of each version's weights: its own, else that of a version with the same weights.

    Args:
        versions: those that sampled tokens.
        oldest: see `same_weights`.
        model: the weights of version 0, unless ``weights`` has others.
        weights: folders that were given, by version.
        claims: see `needed_claims`.

    Raises:
        UsageError: weights are given for a version that nobody needs.
        ReplayRefused: weights of a version are not known.
        ModelError: a folder is not there.
    """
    unused = sorted(set(weights) - set(versions) - {oldest.get(v, v) for v in versions} - {0})
    if unused:
        raise UsageError(
            f"no scored token was sampled under weight version {_names(unused)}; the trace has {_names(versions)}"
        )
    here = {v: claim.checkpoint for v, claim in claims.items() if claim.is_here}
    of_group: dict[int, str | Path] = {0: weights.get(0, model)}
    for version, given in (*sorted(weights.items()), *sorted(here.items())):
        of_group.setdefault(oldest.get(version, version), given)
    missing = [v for v in versions if v not in weights and oldest.get(v, v) not in of_group]
    if missing:
        elsewhere = [f"{claims[v].checkpoint} is not here" for v in missing if v in claims]
        raise ReplayRefused(
            f"tokens were sampled under weight version {_names(missing)}, whose weights were not given: "
            f"add --weights {missing[0]}=FOLDER for each (the same folder, where the weights did not change)"
            + (f"; {', '.join(elsewhere)}" if elsewhere else "")
        )
    folders = {v: Path(weights[v] if v in weights else of_group[oldest.get(v, v)]) for v in versions}
    for folder in folders.values():
        if not folder.is_dir():
            raise ModelError(f"there is no model folder: {folder}")
    return {v: folder.resolve() for v, folder in folders.items()}


def _names(versions: Seq[int]) -> str:
    return ", ".join(str(v) for v in versions)
