"""Weight versions: announced once each, in order, and the same for a step and the tokens it sampled."""

import numpy as np

from tracekit.audit.findings import Finding, finding
from tracekit.audit.rows import EngineRows

__all__ = ["announced", "of_tokens"]


def announced(rows: EngineRows) -> list[Finding]:
    """Versions count up from 1, and each step runs on the last one that began before it."""
    weights, steps = rows.changes, rows["steps"]
    version, since = weights["weight_version"], weights["engine_step"]
    expected = np.arange(1, version.size + 1)
    backwards = np.r_[False, since[1:] < since[:-1]] if since.size else since.astype(bool)
    current = np.r_[0, version][np.searchsorted(np.sort(since), steps["engine_step"], side="right")]
    ran = steps["weight_version"]
    before = np.r_[0, ran[:-1]] if ran.size else ran
    return [
        *finding(
            "version-hole",
            rows.engine,
            version != expected,
            weights,
            lambda i: f"version {version[i]} where {expected[i]} should be",
        ),
        *finding(
            "version-order",
            rows.engine,
            backwards,
            weights,
            lambda i: f"version {version[i]} begins before the version before it",
        ),
        *finding(
            "version-time",
            rows.engine,
            weights["end_ns"] < weights["begin_ns"],
            weights,
            lambda i: f"version {version[i]} ends before it begins",
        ),
        *finding(
            "label-of-no-version",
            rows.engine,
            # a version is announced with the first forward on it, which a label need not wait for
            rows.labelled["weight_version"] > version.max(initial=0) + 1,
            rows.labelled,
            lambda i: f"labels version {rows.labelled['weight_version'][i]}, which was never announced",
        ),
        *finding(
            "version-backwards",
            rows.engine,
            ran < before,
            steps,
            lambda i: f"ran on version {ran[i]} after version {before[i]}",
        ),
        *finding(
            "version-of-step",
            rows.engine,
            ran != current,
            steps,
            lambda i: f"ran on version {ran[i]}, the weights table says {current[i]}",
        ),
    ]


def of_tokens(rows: EngineRows) -> list[Finding]:
    """A token has the version of the step that sampled it."""
    tokens, steps = rows["tokens"], rows["steps"]
    number = steps["engine_step"]
    if not number.size:
        return []
    at = np.minimum(np.searchsorted(number, tokens["engine_step"]), number.size - 1)
    version = steps["weight_version"][at]
    wrong = (number[at] == tokens["engine_step"]) & (tokens["weight_version"] != version)
    return finding(
        "version-of-token",
        rows.engine,
        wrong,
        tokens,
        lambda i: f"position {tokens['position'][i]} has version {tokens['weight_version'][i]}, its step {version[i]}",
    )
