"""What a recorded engine was given, in order, as a script that `tracekit.jobs.forced` plays."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from tracekit import tables
from tracekit.replay.rerun_recorded import Recorded

Row = Mapping[str, Any]
Event = list[Any]

# of events at the same nanosecond, which comes first
_ADD, _ABORT, _RESET, _STEP, _TAKE = range(5)


def as_recorded(recorded: Recorded, folders: Mapping[int, str]) -> list[Event]:
    """Return the events of one engine in their order.

    Args:
        recorded: its rows.
        folders: with the weights of each version that a step ran on.
    """
    rows = recorded.rows
    timed: list[tuple[int, int, Event]] = [(r["time_ns"], _ADD, ["add", r["request"], True]) for r in rows["requests"]]
    aborted = defaultdict(list)
    for row in rows["finishes"]:
        if row["reason"] in ("abort", "error"):
            aborted[row["time_ns"]].append(row["request"])
    timed += [(time_ns, _ABORT, ["abort", requests]) for time_ns, requests in aborted.items()]
    timed += [(r["time_ns"], _RESET, ["reset", _running(r)]) for r in rows["control"] if _is_reset(r)]
    sampled: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row in sorted(rows["tokens"], key=lambda row: int(row["position"])):
        sampled[row["engine_step"], row["request"]].append(row["token_id"])
    parts, gone = defaultdict(list), defaultdict(list)
    for row in rows["scheduled"]:
        step, request = row["engine_step"], row["request"]
        if row["flags"] & tables.PREEMPTED:
            gone[step].append(request)
        else:
            parts[step].append([request, row["num_tokens"], row["num_computed"], sampled.get((step, request), [])])
    for row in rows["steps"]:
        step = row["engine_step"]
        timed.append((row["time_ns"], _STEP, ["step", step, parts[step], gone[step]]))
        timed.append((row["output_ns"], _TAKE, ["take", step]))
    events = [event for *_, event in sorted(timed, key=lambda item: item[:2])]
    return _with_loads(events, [row["weight_version"] for row in rows["steps"]], folders)


def uncached(events: list[Event], recorded: Recorded) -> list[Event]:
    """Return the events with each prefix hit computed again, in the step that found it.

    Args:
        events: as recorded.
        recorded: the engine's rows.
    """
    found = {(row["engine_step"], row["request"]) for row in recorded.rows["cache"]}
    out: list[Event] = []
    for name, *arguments in events:
        if name == "add":
            out.append(["add", arguments[0], False])
        elif name == "step":
            step, rows, gone = arguments
            whole = [[r, n + at, 0, ids] if (step, r) in found else [r, n, at, ids] for r, n, at, ids in rows]
            out += [["room", sum(row[1] for row in whole)], ["step", step, whole, gone]]
        else:
            out.append([name, *arguments])
    return out


def most_tokens(events: list[Event]) -> int:
    """Return how many tokens the largest step of a script computes."""
    return max((sum(row[1] for row in event[2]) for event in events if event[0] == "step"), default=0)


def _with_loads(events: list[Event], versions: list[int], folders: Mapping[int, str]) -> list[Event]:
    """Put weights before the first step that ran on them."""
    out: list[Event] = []
    loaded = folders[versions[0]]
    for event in events:
        if event[0] == "step" and folders[versions[event[1]]] != loaded:
            loaded = folders[versions[event[1]]]
            out.append(["load", loaded])
        out.append(event)
    return out


def _is_reset(row: Row) -> bool:
    return bool(row["name"] == "reset_prefix_cache" and row["answer"] == "true")


def _running(row: Row) -> bool:
    """Whether a reset was to throw out running requests, too."""
    given = json.loads(row["arguments"])
    return bool(given["kwargs"].get("reset_running_requests", (*given["args"], False)[0]))
