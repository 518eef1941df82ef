"""Weight versions: announced once each, in order, and the same for a step and the tokens it sampled."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.audit.findings import BREAKS_REPLAY, Broken, Check
from tracekit.audit.rows import EngineRows
from tracekit.join import pick


def _hole(rows: EngineRows) -> Iterator[Broken]:
    version = rows.changes["weight_version"]
    expected = np.arange(1, version.size + 1)
    yield Broken(version != expected, rows.changes, lambda i: f"version {version[i]} where {expected[i]} should be")


def _order(rows: EngineRows) -> Iterator[Broken]:
    version, since = rows.changes["weight_version"], rows.changes["engine_step"]
    backwards = np.r_[False, since[1:] < since[:-1]][: since.size]
    yield Broken(backwards, rows.changes, lambda i: f"version {version[i]} begins before the version before it")


def _time(rows: EngineRows) -> Iterator[Broken]:
    weights = rows.changes
    wrong = weights["end_ns"] < weights["begin_ns"]
    yield Broken(wrong, weights, lambda i: f"version {weights['weight_version'][i]} ends before it begins")


def _label(rows: EngineRows) -> Iterator[Broken]:
    version = rows.labelled["weight_version"]
    # a version is announced with the first forward on it, which a label need not wait for
    wrong = version > rows.changes["weight_version"].max(initial=0) + 1
    yield Broken(wrong, rows.labelled, lambda i: f"labels version {version[i]}, which was never announced")


def _backwards(rows: EngineRows) -> Iterator[Broken]:
    ran = rows["steps"]["weight_version"]
    before = np.r_[0, ran][:-1]
    yield Broken(ran < before, rows["steps"], lambda i: f"ran on version {ran[i]} after version {before[i]}")


def _of_step(rows: EngineRows) -> Iterator[Broken]:
    steps, since = rows["steps"], np.sort(rows.changes["engine_step"])
    begun = np.searchsorted(since, steps["engine_step"], side="right")
    current, ran = np.r_[0, rows.changes["weight_version"]][begun], steps["weight_version"]
    yield Broken(ran != current, steps, lambda i: f"ran on version {ran[i]}, the weights table says {current[i]}")


def _of_token(rows: EngineRows) -> Iterator[Broken]:
    tokens = rows["tokens"]
    own = tokens["weight_version"]
    version = pick(rows["steps"]["weight_version"], rows.step_of(tokens["engine_step"]), own)
    yield Broken(
        own != version,
        tokens,
        lambda i: f"position {tokens['position'][i]} has version {own[i]}, its step {version[i]}",
    )


_WEIGHTS = frozenset({"weights"})
_REPORT = "Do not replay across weight versions with this trace, and report it with how your weights arrive."

CHECKS = (
    Check(
        "version-hole",
        BREAKS_REPLAY,
        "Weight versions count up from 1, else tokens are scored under other weights than those that sampled them.",
        _REPORT,
        _hole,
        _WEIGHTS,
    ),
    Check(
        "version-order",
        BREAKS_REPLAY,
        "A version begins no earlier than the one before it, else steps between the two count for the wrong one.",
        _REPORT,
        _order,
        _WEIGHTS,
    ),
    Check(
        "version-time",
        BREAKS_REPLAY,
        "A change of weights ends after it begins, else what ran meanwhile is not known.",
        _REPORT,
        _time,
        _WEIGHTS,
    ),
    Check(
        "label-of-no-version",
        BREAKS_REPLAY,
        "A label names a version that was announced or comes next, else its checkpoint is taken for other weights.",
        "Give replay the checkpoints yourself with --weights VERSION=PATH, and see when the trainer calls mark.",
        _label,
        _WEIGHTS,
    ),
    Check(
        "version-backwards",
        BREAKS_REPLAY,
        "No step runs on older weights than the step before it.",
        _REPORT,
        _backwards,
        _WEIGHTS,
    ),
    Check(
        "version-of-step",
        BREAKS_REPLAY,
        "A step runs on the last version that began before it, else its tokens are scored under other weights.",
        _REPORT,
        _of_step,
        _WEIGHTS,
    ),
    Check(
        "version-of-token",
        BREAKS_REPLAY,
        "A token has the version of the step that sampled it, else it is scored under other weights.",
        _REPORT,
        _of_token,
    ),
)
