"""Weight versions whose weights are those of an earlier one: what a replay need not be given twice."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

from tracekit.replay.numbers import engine_of


def same_weights(rows: Iterable[Mapping[str, Any]], ran: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return the oldest version that has the same weights, for each version that is not the oldest itself.

    A version has the weights of the one before where its fingerprints are all the same, or where only an adapter's
    weights changed, in every engine that ran it: a version's number stands for one set of weights in all engines.

    Args:
        rows: the table `weights`.
        ran: (engine, weight version) of the scored tokens.
    """
    same: dict[int, set[int]] = {}
    changed: dict[int, set[int]] = {}
    for engine, version in ran:
        changed.setdefault(version, set()).add(engine)
    for row in rows:
        version, engine = int(row["weight_version"]), int(row["engine"])
        if row["label"] is not None:
            continue  # it changes nothing
        changed.setdefault(version, set()).add(engine)
        if row["lora"] is not None or row["num_changed"] == 0:
            same.setdefault(version, set()).add(engine)
    oldest: dict[int, int] = {}
    for version in sorted(same):
        if changed[version] <= same[version]:
            oldest[version] = oldest.get(version - 1, version - 1)
    return oldest


def neighbours(oldest: Mapping[int, int], step: int) -> tuple[tuple[int, int], ...]:
    """Return each of the weights with the other ones that came before (step -1) or after it (+1), where there are any.

    Args:
        oldest: number to the oldest one with the same weights, of all whose weights are known.
        step: -1 or +1.
    """
    found: dict[int, int] = {}
    for _, of_engine in groupby(sorted(oldest), key=engine_of):
        in_order = [oldest[version] for version in of_engine]
        for at, own in enumerate(in_order):
            rest = in_order[at + 1 :] if step > 0 else in_order[:at][::-1]
            other = next((weights for weights in rest if weights != own), None)
            if other is not None:
                found.setdefault(own, other)
    return tuple(sorted(found.items()))
