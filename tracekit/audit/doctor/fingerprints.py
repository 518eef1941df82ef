"""Fingerprints of weights: taken of announced versions only, and what `num_changed` says is what they say."""

from itertools import pairwise

import numpy as np

from tracekit.audit.findings import Array, Finding, finding
from tracekit.audit.rows import EngineRows

__all__ = ["fingerprints"]

UNKNOWN = -1  # as the rows have a null

# per tensor of one version: place (worker and name), kind (dtype and shape), hash; in order of the place
_Version = tuple[Array, Array, Array]


def fingerprints(rows: EngineRows) -> list[Finding]:
    """Each version has the fingerprints it should have, once each, and counts the changes since the one before."""
    columns, changes = rows["fingerprints"], rows.changes
    of_model = np.array([name is None for name in rows.adapters], dtype=bool)
    model = {name: values[of_model] for name, values in changes.items()}
    version = columns["weight_version"]
    place = _codes([f"{r} {t}" for r, t in zip(columns["rank"], rows.tensors["tensor"], strict=True)])
    kind = _codes([f"{d} {s}" for d, s in zip(rows.tensors["dtype"], rows.tensors["shape"], strict=True)])
    order = np.lexsort((place, version))
    again = np.zeros(version.size, dtype=bool)
    again[order[1:]] = (np.diff(version[order]) == 0) & (np.diff(place[order]) == 0)
    every = np.r_[0, model["weight_version"]]
    first = np.atleast_1d(np.searchsorted(version[order], every))
    end = np.atleast_1d(np.searchsorted(version[order], every, side="right"))
    taken: list[_Version] = []
    for a, b in zip(first, end, strict=True):
        own = order[a:b]
        taken.append((place[own], kind[own], columns["hash"][own]))
    counted = np.array([_count(a, b) for a, b in pairwise(taken)], dtype=np.int64)
    expected = np.full(of_model.size, UNKNOWN)
    expected[of_model] = counted
    told = changes["num_changed"]
    no_baseline = np.array([bool(version.size) and not taken[0][0].size])
    return [
        *finding(
            "fingerprint-of-no-version",
            rows.engine,
            ~np.isin(version, every),
            columns,
            lambda i: f"a fingerprint of version {version[i]}, which is not one of the model's",
        ),
        *finding(
            "fingerprint-twice",
            rows.engine,
            again,
            columns,
            lambda i: f"{rows.tensors['tensor'][i]!r} of worker {columns['rank'][i]} again in version {version[i]}",
        ),
        *finding(
            "fingerprint-baseline",
            rows.engine,
            no_baseline,
            {},
            lambda _: "there are fingerprints, but none of the weights that were loaded",
        ),
        *finding(
            "num-changed",
            rows.engine,
            told != expected,
            changes,
            lambda i: f"version {changes['weight_version'][i]} says {_say(told[i])}, fingerprints {_say(expected[i])}",
        ),
    ]


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
