"""Compare what a replay says with the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corpus.case import NONE, Case


@dataclass(frozen=True)
class Mark:
    """Whether a verdict is right; None where the truth has nothing to compare with.

    Attributes:
        layer: the layer of mismatch; of a clean recording, that none is named.
        cause: the first cause is one of those that are right; of a composite, each of them is among the causes.
        exact, near: the first token is the one that the fault reaches first; or at most one off.
        module: the module is among the names of the causes.
        miss: in words, what was said where something is wrong; empty where all is right.
    """

    layer: bool
    cause: bool | None
    exact: bool | None
    near: bool | None
    module: bool | None
    miss: str


def mark(case: Case, said: Mapping[str, Any]) -> Mark:
    """Mark one verdict."""
    truth = case.truth
    if "error" in said:
        right = truth.refused and not said["error"].startswith("crash")
        return Mark(right, None, None, None, None, "" if right else said["error"])
    if truth.refused:
        right = said["layer"] == NONE and bool(said["withheld"])
        return Mark(right, None, None, None, None, "" if right else _said(said))
    layer = said["layer"] == truth.layer
    if truth.layer == NONE:
        passed = layer and said["exit_code"] == 0
        return Mark(passed, None, None, None, None, "" if passed else _said(said))
    codes = [cause["code"] for cause in said["causes"]] or [said["cause"]]
    if case.kind == "composite":
        cause = all(set(each.split("|")) & set(codes) for each in truth.causes)
    else:
        cause = layer and codes[0] in truth.causes
    off = None if said["since"] is None or truth.first is None else abs(said["since"]["output_index"] - truth.first)
    names = "".join(f" {name} " for found in said["causes"] for name in found["names"])
    marks = {
        "layer": layer,
        "cause": cause if truth.causes else None,
        "exact": None if truth.first is None else layer and off == 0,
        "near": None if truth.first is None else layer and off is not None and off <= 1,
        "module": any(name in names for name in truth.module.split("|")) if truth.module else None,
    }
    return Mark(**marks, miss=_said(said) if False in marks.values() else "")


def _said(said: Mapping[str, Any]) -> str:
    codes = ", ".join(cause["code"] for cause in said["causes"]) or said["cause"]
    since = "" if said["since"] is None else f", token {said['since']['output_index']}"
    withheld = ", something withheld" if said["withheld"] else ""
    return f"{said['layer']}: {codes}{since}{withheld}" if said["layer"] != NONE else f"none{withheld}"


def wilson(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927, without continuity correction)."""
    if not of:
        return 0.0, 1.0
    share = right / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return max(0.0, middle - half), min(1.0, middle + half)
