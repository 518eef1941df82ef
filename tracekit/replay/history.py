"""Under which weights each position of a request was computed, as a trace tells it: scheduled, steps and cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from tracekit import tables
from tracekit.join import lookup, pair_key, pick
from tracekit.replay.columns import int_columns
from tracekit.replay.tokens import Columns

if TYPE_CHECKING:
    import pyarrow as pa

    from tracekit.trace.reader import Trace

I8 = npt.NDArray[np.int64]
Pair = tuple[int, int]  # engine, request


class Block(NamedTuple):
    """A block of KV that a request found computed; the versions are None where nobody is known to have done so here."""

    start: int
    stop: int
    oldest: int | None
    newest: int | None


class Computed(NamedTuple):
    """Positions start..stop that steps from `engine_step` on computed under one weight version.

    `found` are the blocks before them that the request took from the prefix cache instead of keeping its own KV.
    """

    engine_step: int
    weight_version: int
    start: int
    stop: int
    found: tuple[Block, ...] = ()


@dataclass(frozen=True)
class _Scheduled:
    columns: Columns  # in order of (engine, request, engine_step)
    version: I8
    starts_anew: npt.NDArray[np.bool_]


def histories(trace: Trace, tokens: Columns) -> dict[Pair, tuple[Computed, ...]]:
    """Return how the KV of each request came about; requests whose KV and tokens are all of one version are left out.

    Args:
        trace: with its tables.
        tokens: the accepted tokens, which know the version of their step best.
    """
    steps = int_columns(trace.table("steps"), ("engine", "engine_step", "weight_version"))
    cache = trace.table("cache")
    of_blocks = int_columns(cache, ("min_weight_version", "max_weight_version"))
    told = [steps["weight_version"], tokens["weight_version"], *of_blocks.values()]
    if len({int(version) for versions in told for version in np.unique(versions)} - {-1}) < 2:
        return {}  # the whole trace is of one version
    rows = _scheduled(trace, tokens, steps)
    found = _found(cache)
    columns = rows.columns
    if not columns["request"].size:
        return {}
    edges = _edges(columns["engine"], columns["request"])
    out = {}
    for start, end in pairwise(edges):
        key = int(columns["engine"][start]), int(columns["request"][start])
        own = found.get(key, {})
        versions = {int(v) for v in np.unique(rows.version[start:end])}
        blocks = [block for hit in own.values() for block in hit]
        versions |= {v for block in blocks for v in (block.oldest, block.newest) if v is not None}
        if len(versions) > 1 and -1 not in versions:
            out[key] = tuple(_computed(rows, int(start), int(end), own))
    return out


def _scheduled(trace: Trace, tokens: Columns, steps: dict[str, I8]) -> _Scheduled:
    """Rows of requests that computed something; the version is -1 where no row tells the step's."""
    names = ("engine", "request", "engine_step", "num_tokens", "num_computed", "flags")
    columns = int_columns(trace.table("scheduled"), names)
    runs = ((columns["flags"] & tables.PREEMPTED) == 0) & (columns["num_tokens"] > 0)
    # the table is in the order of steps
    order = np.flatnonzero(runs)
    order = order[np.argsort(pair_key(columns["engine"], columns["request"])[order], kind="stable")]
    columns = {name: values[order] for name, values in columns.items()}
    # of a step that both tell the token's own stamp counts, which comes last
    step = np.concatenate([pair_key(rows["engine"], rows["engine_step"]) for rows in (steps, tokens)])
    version = np.concatenate([steps["weight_version"], tokens["weight_version"]])
    known, last = np.unique(step[::-1], return_index=True)
    at = lookup(known, pair_key(columns["engine"], columns["engine_step"]))
    versions = pick(version[::-1][last], at, -1)
    anew = (columns["flags"] & (tables.NEW | tables.RESUMED)) != 0
    return _Scheduled(columns, versions, anew)


def _computed(rows: _Scheduled, start: int, end: int, found: dict[int, tuple[Block, ...]]) -> Iterator[Computed]:
    """The rows start..end of one request, those joined that go on under the same version."""
    part = slice(start, end)
    first = rows.columns["num_computed"][part]
    stop = first + rows.columns["num_tokens"][part]
    version, step = rows.version[part], rows.columns["engine_step"][part]
    breaks = np.flatnonzero((np.diff(version) != 0) | (first[1:] != stop[:-1]) | rows.starts_anew[part][1:]) + 1
    edges = [0, *breaks.tolist(), end - start]
    for a, b in pairwise(edges):
        hit = found.get(int(step[a]), ()) if rows.starts_anew[part][a] else ()
        yield Computed(int(step[a]), int(version[a]), int(first[a]), int(stop[b - 1]), hit)


def _found(table: pa.Table) -> dict[Pair, dict[int, tuple[Block, ...]]]:
    """Blocks of the first group of layers that a request found in a step."""
    found: dict[Pair, dict[int, list[Block]]] = {}
    for row in table.to_pylist():
        if row["kv_group"] == 0:
            blocks = found.setdefault((row["engine"], row["request"]), {}).setdefault(row["engine_step"], [])
            start = blocks[-1].stop if blocks else 0
            oldest, newest = row["min_weight_version"], row["max_weight_version"]
            blocks.append(Block(start, start + row["num_tokens"], oldest, newest))
    return {key: {step: tuple(blocks) for step, blocks in by_step.items()} for key, by_step in found.items()}


def _edges(*columns: I8) -> I8:
    """Indices at which any of the columns changes, with 0 and the end."""
    changes = np.any([np.diff(column) != 0 for column in columns], axis=0)
    return np.array([0, *(np.flatnonzero(changes) + 1), columns[0].size], dtype=np.int64)
