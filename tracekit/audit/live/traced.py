"""What a trace says that the engine's counters should be.

Bounds on either side, because some counters are the client's: V1's frontend counts what it delivered, so a request
that it ended itself (a stop string, a client that hung up) holds tokens in the engine that were never counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from tracekit.audit.findings import Array
from tracekit.audit.live.counters import CACHED, FINISHED, GENERATION, HITS, IN_FLIGHT, PREEMPTIONS, PROMPT, QUERIES
from tracekit.audit.rows import EngineRows
from tracekit.plural import plural
from tracekit.tables import NEW, PREEMPTED, PREFILL, RESUMED


@dataclass(frozen=True)
class Quantity:
    """A counter lies between `low` and `high` (None: no upper bound), if the trace is whole and up to date.

    Example:
        Quantity("generation tokens", 480, 512, "32 tokens of 2 aborted requests may not have been delivered")
    """

    name: str
    low: int
    high: int | None
    why: str = ""  # low and high are not the same
    needs: frozenset[str] = frozenset({"requests", "tokens", "scheduled", "finishes"})  # tables that must be whole


@dataclass(frozen=True)
class _View:
    """One engine's requests, as arrays in the order of their numbers."""

    rows: EngineRows
    num_output: Array
    aborted: Array
    reason: list[str]  # "" where it has not finished
    stops: Array  # asked for stop strings

    @classmethod
    def of(cls, rows: EngineRows) -> _View:
        numbers = rows["requests"]["request"]
        reason = [""] * numbers.size
        for row, why in zip(rows.row_of(rows["finishes"]["request"]), rows.reasons, strict=True):
            if row >= 0:
                reason[row] = why
        at = rows.row_of(rows.accepted["request"])
        return cls(
            rows,
            np.bincount(at[at >= 0], minlength=numbers.size),
            np.array([why == "abort" for why in reason], dtype=bool),
            reason,
            np.array([bool(params.get("stop")) for params in rows.sampling], dtype=bool),
        )

    def bounded(self, name: str, values: Array, what: str) -> Quantity:
        """Sum `values` of each request; those of aborted requests may not have been counted."""
        total, doubtful = int(values.sum()), int(values[self.aborted].sum())
        aborted = plural(int(self.aborted.sum()), "aborted request")
        why = f"{plural(doubtful, what)} of {aborted} may not have been delivered"
        return Quantity(name, total - doubtful, total, why if doubtful else "")


def traced(rows: EngineRows) -> tuple[list[Quantity], dict[str, str]]:
    """Return what the trace says of one engine's counters, and why it says nothing of others."""
    view, unsaid = _View.of(rows), {}
    is_v0 = rows.about.get("kind") == "v0"
    found = [view.bounded(GENERATION, view.num_output, "token")]
    makers: list[tuple[str, Callable[[_View], Quantity | str]]]
    if is_v0:
        makers = [(PROMPT, _prompt_chunks), (PREEMPTIONS, _preempted), (IN_FLIGHT, _in_flight)]
    else:
        makers = [(PROMPT, _prompts), (CACHED, _cached), (PREEMPTIONS, _came_back), (IN_FLIGHT, _in_flight)]
        makers += [(QUERIES, lambda v: _lookups(v, QUERIES)), (HITS, lambda v: _lookups(v, HITS))]
    for name, make in makers:
        made = make(view)
        if isinstance(made, str):
            unsaid[name] = made
        else:
            found.append(made)
    return found + _finished(view, is_v0), unsaid


def of_a_part(rows: EngineRows, found: list[Quantity], unsaid: dict[str, str]) -> list[Quantity]:
    """Return the least that counters may be which count from the engine's start, and all of its requests.

    Requests in flight are no sum: they are all known while all are recorded, those too that were there at the attach.

    Args:
        rows: of an engine that a recorder was attached to, or taken off, or that was recorded in part.
        found: what the trace says of them.
        unsaid: is told why it says nothing of some.
    """
    names = {row["name"] for row in rows.control}
    why = f"the recorder was attached at step {rows.since_step}, the engine counts from its start"
    if rows.is_sampled or "detach" in names:
        unsaid[IN_FLIGHT] = "a share of the requests is recorded" if rows.is_sampled else "it is not recorded any more"
        found = [quantity for quantity in found if quantity.name != IN_FLIGHT]
        why = unsaid[IN_FLIGHT]
    return [q if q.name == IN_FLIGHT else replace(q, high=None, why=why) for q in found]


def _prompts(view: _View) -> Quantity | str:
    """V1 counts a prompt with the first output of its request."""
    if (view.rows.num_prompt == 0).any():
        return "a prompt of embeddings has no token ids in the trace"
    return view.bounded(PROMPT, view.rows.num_prompt * (view.num_output > 0), "token")


def _prompt_chunks(view: _View) -> Quantity:
    """V0 counts a chunk when it is computed, the tokens of a prefix hit with it, and again after a preemption."""
    columns = view.rows["scheduled"]
    order = np.lexsort(((columns["flags"] & PREEMPTED) == 0, columns["engine_step"], columns["request"]))
    request, flags = columns["request"][order], columns["flags"][order]
    end = (columns["num_computed"] + columns["num_tokens"])[order]
    goes_on = np.r_[False, request[1:] == request[:-1]] if request.size else request.astype(bool)
    left = np.where(goes_on & ((flags & (NEW | RESUMED)) == 0), np.r_[0, end[:-1]][: end.size], 0)
    total = int((end - left)[(flags & PREFILL) != 0].sum())
    return Quantity(PROMPT, total, total)


def _cached(view: _View) -> Quantity | str:
    """The prefix hit of each request when it was first scheduled, counted with its first output."""
    return view.bounded(CACHED, _first_hits(view) * (view.num_output > 0), "token")


def _first_hits(view: _View) -> Array:
    columns = view.rows["scheduled"]
    new = np.flatnonzero((columns["flags"] & NEW) != 0)
    request, first = np.unique(columns["request"][new], return_index=True)
    hits = np.zeros(view.num_output.size, dtype=np.int64)
    at = view.rows.row_of(request)
    hits[at[at >= 0]] = columns["num_computed"][new[first]][at >= 0]
    return hits


def _came_back(view: _View) -> Quantity:
    """V1 counts a preemption with the next output of its request, a reset of the cache that throws it out as well."""
    columns, tokens = view.rows["scheduled"], view.rows.accepted
    last = np.full(view.num_output.size, -1, dtype=np.int64)
    at = view.rows.row_of(tokens["request"])
    np.maximum.at(last, at[at >= 0], tokens["engine_step"][at >= 0])
    row = view.rows.row_of(columns["request"])
    seen: set[int] = set()
    back = (columns["flags"] & RESUMED) != 0
    for i in np.flatnonzero((columns["flags"] & NEW) != 0).tolist():
        # some runners bring a request back as a new one
        back[i] = back[i] or int(columns["request"][i]) in seen
        seen.add(int(columns["request"][i]))
    counted = back & (row >= 0)
    counted[counted] = columns["engine_step"][counted] <= last[row[counted]]
    return view.bounded(PREEMPTIONS, np.bincount(row[counted], minlength=view.num_output.size), "preemption")


def _preempted(view: _View) -> Quantity:
    count = int(((view.rows["scheduled"]["flags"] & PREEMPTED) != 0).sum())
    return Quantity(PREEMPTIONS, count, count)


def _lookups(view: _View, name: str) -> Quantity | str:
    """Tokens looked up in the prefix cache, and found, when requests were first scheduled."""
    if view.rows.setting("kv_transfer_config") is not None:
        return "blocks come from a KV connector as well"
    if not view.rows.setting("cache_config", "enable_prefix_caching"):
        return "prefix caching is off"
    hits = _first_hits(view)
    columns = view.rows["scheduled"]
    scheduled = np.isin(view.rows["requests"]["request"], columns["request"][(columns["flags"] & NEW) != 0])
    looks = np.array([params.get("prompt_logprobs") is None for params in view.rows.sampling], dtype=bool)
    total = int(((view.rows.num_prompt if name == QUERIES else hits) * (scheduled & looks)).sum())
    # a request that does not fit is looked up again in every step until it does
    waited = bool((view.rows["steps"]["num_waiting"] > 0).any())
    return Quantity(name, total, None if waited else total, "requests that wait are looked up again" if waited else "")


def _in_flight(view: _View) -> Quantity | str:
    steps, requests, done = view.rows["steps"], view.rows["requests"], view.rows["finishes"]
    last = int(steps["output_ns"].max()) if steps["output_ns"].size else 0
    aborted = np.array([why == "abort" for why in view.rows.reasons], dtype=bool)
    if (requests["time_ns"] > last).any() or (done["time_ns"][aborted] > last).any():
        return "a request came or went after the last engine step, the engine says so with the next one"
    count = sum(not why for why in view.reason)
    return Quantity(IN_FLIGHT, count, count)


def _finished(view: _View, is_v0: bool) -> list[Quantity]:
    counts = {why: view.reason.count(why) for why in ("stop", "length", "abort", *view.reason) if why}
    found = []
    for why, count in counts.items():
        low = high = count
        text = ""
        if why == "abort":
            low, text = 0, "a request that the client ended is counted as stopped, or not at all"
        elif is_v0:
            # longer than the model's maximum: it was never run
            low -= sum(r == why and n == 0 for r, n in zip(view.reason, view.num_output.tolist(), strict=True))
            text = "a request that was never run is not counted"
        elif why in ("stop", "length"):
            cut = int((view.aborted & view.stops).sum())
            at_end = sum(r == "length" and s for r, s in zip(view.reason, view.stops.tolist(), strict=True))
            low, high = (low, high + cut + at_end) if why == "stop" else (low - at_end, high)
            text = "V1's frontend finds stop strings by itself"
        found.append(Quantity(FINISHED + why, low, high, text if low != high else ""))
    return found
