"""Fingerprints of weights: taken of announced versions only, and what `num_changed` says is what they say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tracekit.audit.findings import BREAKS_REPLAY, Array, Broken, Check
from tracekit.audit.rows import EngineRows, once

UNKNOWN = -1  # as the rows have a null

# per tensor of one version: place (worker and name), kind (dtype and shape), hash; in order of the place
_Version = tuple[Array, Array, Array]


@dataclass(frozen=True)
class _Taken:
    """The fingerprints of an engine, sorted out."""

    place: Array  # [N] a number for each tensor of each worker
    of_model: Array  # bool [changes] whether it changed the model's own weights
    versions: Array  # the model's, 0 first
    by_version: list[_Version]


@once
def _taken(rows: EngineRows) -> _Taken:
    columns = rows["fingerprints"]
    of_model = np.array([name is None for name in rows.adapters], dtype=bool)
    version = columns["weight_version"]
    place = _codes([f"{r} {t}" for r, t in zip(columns["rank"], rows.tensors["tensor"], strict=True)])
    kind = _codes([f"{d} {s}" for d, s in zip(rows.tensors["dtype"], rows.tensors["shape"], strict=True)])
    versions = np.r_[0, rows.changes["weight_version"][of_model]]
    order = np.lexsort((place, version))
    first = np.atleast_1d(np.searchsorted(version[order], versions))
    end = np.atleast_1d(np.searchsorted(version[order], versions, side="right"))
    parts = [order[a:b] for a, b in zip(first, end, strict=True)]
    return _Taken(place, of_model, versions, [(place[own], kind[own], columns["hash"][own]) for own in parts])


def _of_no_version(rows: EngineRows) -> Iterator[Broken]:
    version = rows["fingerprints"]["weight_version"]
    yield Broken(
        ~np.isin(version, _taken(rows).versions),
        rows["fingerprints"],
        lambda i: f"a fingerprint of version {version[i]}, which is not one of the model's",
    )


def _twice(rows: EngineRows) -> Iterator[Broken]:
    columns, place = rows["fingerprints"], _taken(rows).place
    version = columns["weight_version"]
    order = np.lexsort((place, version))
    again = np.zeros(version.size, dtype=bool)
    again[order[1:]] = (np.diff(version[order]) == 0) & (np.diff(place[order]) == 0)
    yield Broken(
        again,
        columns,
        lambda i: f"{rows.tensors['tensor'][i]!r} of worker {columns['rank'][i]} again in version {version[i]}",
    )


def _baseline(rows: EngineRows) -> Iterator[Broken]:
    if rows.since_step is not None:
        return  # the weights that were loaded had gone by
    loaded = _taken(rows).by_version[0][0]
    missing = bool(rows["fingerprints"]["weight_version"].size) and not loaded.size
    text = "there are fingerprints, but none of the weights that were loaded"
    yield Broken(np.array([missing]), {}, lambda _: text)


def _num_changed(rows: EngineRows) -> Iterator[Broken]:
    changes, taken = rows.changes, _taken(rows)
    expected = np.full(taken.of_model.size, UNKNOWN)
    expected[taken.of_model] = [_count(a, b) for a, b in pairwise(taken.by_version)]
    told = changes["num_changed"]
    yield Broken(
        told != expected,
        changes,
        lambda i: f"version {changes['weight_version'][i]} says {_say(told[i])}, fingerprints {_say(expected[i])}",
    )


def _codes(texts: list[str]) -> Array:
    return np.unique(np.array(texts, dtype=object), return_inverse=True)[1] if texts else np.zeros(0, dtype=np.int64)


def _count(before: _Version, now: _Version) -> int:
    """Tensors that differ, as `tracekit.tables` has it."""
    if not before[0].size or not now[0].size:
        return UNKNOWN
    both, i, j = np.intersect1d(before[0], now[0], return_indices=True)
    same_kind = before[1][i] == now[1][j]
    known = (before[2][i] != UNKNOWN) & (now[2][j] != UNKNOWN)
    on_one_side = np.union1d(before[0], now[0]).size - both.size
    changed = on_one_side + np.count_nonzero(~same_kind | (known & (before[2][i] != now[2][j])))
    return int(changed) if changed or known.all() else UNKNOWN


def _say(count: int) -> str:
    return "unknown" if count == UNKNOWN else str(count)


_NEEDS = frozenset({"weights", "fingerprints"})
_REPORT = "Give replay the checkpoint of each version with --weights VERSION=PATH, and report the trace."

CHECKS = (
    Check(
        "fingerprint-of-no-version",
        BREAKS_REPLAY,
        "Fingerprints are of versions of the model that were announced, else weights changed unseen.",
        _REPORT,
        _of_no_version,
        _NEEDS,
    ),
    Check(
        "fingerprint-twice",
        BREAKS_REPLAY,
        "A version has one fingerprint of each tensor of each worker, else nobody knows which weights it had.",
        _REPORT,
        _twice,
        _NEEDS,
    ),
    Check(
        "fingerprint-baseline",
        BREAKS_REPLAY,
        "Where there are fingerprints there are some of the weights that were loaded, else no change can be told.",
        _REPORT,
        _baseline,
        _NEEDS,
    ),
    Check(
        "num-changed",
        BREAKS_REPLAY,
        "A version counts as changed the tensors whose fingerprints differ, else an update that did nothing passes.",
        _REPORT,
        _num_changed,
        _NEEDS,
    ),
)
