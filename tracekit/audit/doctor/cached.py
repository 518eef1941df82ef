"""The blocks of prefix-cache hits: they cover what a request found computed, by weights that were there before."""

import numpy as np

from tracekit.audit.doctor.steps import sum_by
from tracekit.audit.findings import Array, Columns, Finding, finding
from tracekit.audit.rows import EngineRows, sequence_key
from tracekit.tables import NEW, RESUMED

__all__ = ["covered", "versions"]


def covered(rows: EngineRows) -> list[Finding]:
    """In each KV group a hit's blocks follow each other from the first and hold exactly the tokens it found."""
    blocks, hits = rows["cache"], _hits(rows)
    key = sequence_key(hits["engine_step"], hits["request"])
    of = sequence_key(blocks["engine_step"], blocks["request"])
    place, group = blocks["block"], blocks["kv_group"]
    found = finding(
        "cache-without-hit",
        rows.engine,
        ~np.isin(of, key),
        blocks,
        lambda i: f"block {place[i]} was found computed by nobody who began or resumed",
    )
    if place.size:
        same = np.r_[False, (of[1:] == of[:-1]) & (group[1:] == group[:-1])]
        before = np.r_[-1, place[:-1]]
        found += finding(
            "cache-block-hole",
            rows.engine,
            place != np.where(same, before + 1, 0),
            blocks,
            lambda i: f"block {place[i]} of KV group {group[i]} does not follow the one before it",
        )
    for number in np.unique(group).tolist() or [0]:
        mine = group == number
        tokens = sum_by(key, of[mine], blocks["num_tokens"][mine])

        def says(i: int, number: int = number, tokens: Array = tokens) -> str:
            return f"{hits['num_computed'][i]} tokens cached, its blocks of KV group {number} hold {tokens[i]}"

        found += finding("cache-coverage", rows.engine, tokens != hits["num_computed"], hits, says)
    return found


def versions(rows: EngineRows) -> list[Finding]:
    """A block's oldest weights are not newer than its newest, and those not newer than the step that found it."""
    blocks, steps = rows["cache"], rows["steps"]
    number = steps["engine_step"]
    if not number.size or not blocks["block"].size:
        return []
    oldest, newest = blocks["min_weight_version"], blocks["max_weight_version"]
    at = np.minimum(np.searchsorted(number, blocks["engine_step"]), number.size - 1)
    now = np.where(number[at] == blocks["engine_step"], steps["weight_version"][at], newest)
    wrong = ((oldest < 0) != (newest < 0)) | (oldest > newest) | (newest > now)
    return finding(
        "cache-version",
        rows.engine,
        wrong,
        blocks,
        lambda i: f"block {blocks['block'][i]} computed by versions {oldest[i]} to {newest[i]}, found under {now[i]}",
    )


def _hits(rows: EngineRows) -> Columns:
    scheduled = rows["scheduled"]
    hit = ((scheduled["flags"] & (NEW | RESUMED)) != 0) & (scheduled["num_computed"] > 0)
    return {name: values[hit] for name, values in scheduled.items()}
