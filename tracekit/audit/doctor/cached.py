"""The blocks of prefix-cache hits: they cover what a request found computed, by weights that were there before."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tracekit.audit.doctor.sums import sum_by
from tracekit.audit.findings import MISLEADS, Array, Broken, Check, Columns, select
from tracekit.audit.rows import EngineRows, sequence_key
from tracekit.join import pick
from tracekit.plural import plural
from tracekit.tables import NEW, RESUMED


def _hits(rows: EngineRows) -> Columns:
    """Rows of new and of resumed requests that found tokens computed."""
    scheduled = rows["scheduled"]
    return select(scheduled, ((scheduled["flags"] & (NEW | RESUMED)) != 0) & (scheduled["num_computed"] > 0))


def _without_hit(rows: EngineRows) -> Iterator[Broken]:
    blocks = rows["cache"]
    yield Broken(
        ~np.isin(sequence_key(blocks), sequence_key(_hits(rows))),
        blocks,
        lambda i: f"block {blocks['block'][i]} was found computed by nobody who began or resumed",
    )


def _hole(rows: EngineRows) -> Iterator[Broken]:
    blocks = rows["cache"]
    of, place, group = sequence_key(blocks), blocks["block"], blocks["kv_group"]
    same = np.r_[False, (of[1:] == of[:-1]) & (group[1:] == group[:-1])][: place.size]
    before = np.r_[-1, place][:-1]
    yield Broken(
        place != np.where(same, before + 1, 0),
        blocks,
        lambda i: f"block {place[i]} of KV group {group[i]} does not follow the one before it",
    )


def _coverage(rows: EngineRows) -> Iterator[Broken]:
    blocks, hits = rows["cache"], _hits(rows)
    for number in np.unique(blocks["kv_group"]).tolist() or [0]:
        mine = select(blocks, blocks["kv_group"] == number)
        tokens = sum_by(sequence_key(hits), sequence_key(mine), mine["num_tokens"])

        def says(i: int, number: int = number, tokens: Array = tokens) -> str:
            cached = plural(hits["num_computed"][i], "token")
            return f"{cached} cached, its blocks of KV group {number} hold {tokens[i]}"

        yield Broken(tokens != hits["num_computed"], hits, says)


def _version(rows: EngineRows) -> Iterator[Broken]:
    blocks = rows["cache"]
    oldest, newest = blocks["min_weight_version"], blocks["max_weight_version"]
    now = pick(rows["steps"]["weight_version"], rows.step_of(blocks["engine_step"]), newest)
    yield Broken(
        ((oldest < 0) != (newest < 0)) | (oldest > newest) | (newest > now),
        blocks,
        lambda i: f"block {blocks['block'][i]} computed by versions {oldest[i]} to {newest[i]}, found under {now[i]}",
    )


_BLOCKS = frozenset({"scheduled", "cache"})
_REPORT = "Do not trust causes that rest on prefix hits, and report the trace with the version of vLLM."

CHECKS = (
    Check(
        "cache-without-hit",
        MISLEADS,
        "Cached blocks belong to a request that began or resumed with computed tokens.",
        _REPORT,
        _without_hit,
        _BLOCKS,
    ),
    Check(
        "cache-block-hole",
        MISLEADS,
        "The blocks of a hit follow each other from the first in each KV group, as a prefix does.",
        _REPORT,
        _hole,
        _BLOCKS,
    ),
    Check(
        "cache-coverage",
        MISLEADS,
        "The blocks of a hit hold exactly the tokens that it found, else the age of some KV is not known.",
        _REPORT,
        _coverage,
        _BLOCKS,
    ),
    Check(
        "cache-version",
        MISLEADS,
        "A block's oldest weights are not newer than its newest, and those not newer than the step that found it.",
        _REPORT,
        _version,
    ),
)
