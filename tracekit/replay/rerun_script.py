"""What a recorded engine was given, in order, as a script that `tracekit.jobs.forced` plays; or why it cannot be."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tracekit import tables
from tracekit.errors import ReplayRefused
from tracekit.trace.ledger import num_lost_rows

if TYPE_CHECKING:
    from tracekit.trace.reader import Trace

Row = Mapping[str, Any]
Event = list[Any]

# of events at the same nanosecond, which comes first
_ADD, _ABORT, _RESET, _STEP, _TAKE = range(5)
_OBJECTS = ("logit_bias", "extra_args")  # sampling parameters that may be objects


class Recorded:
    """The rows of one engine of a trace, as far as a re-run needs them.

    Args:
        trace: with all its tables.
        engine: its number.

    Raises:
        ReplayRefused: rows are missing, so that what the engine was given is not known.
    """

    def __init__(self, trace: Trace, engine: int) -> None:
        self.engine = engine
        (self.row,) = (row for row in trace.engines() if row["engine"] == engine)
        self.config: dict[str, Any] = json.loads(self.row.get("config") or "{}")
        names = ("requests", "tokens", "steps", "scheduled", "cache", "finishes", "control", "workers")
        self.rows = {name: [r for r in trace.table(name).to_pylist() if r["engine"] == engine] for name in names}
        self.rows["steps"].sort(key=lambda row: row["engine_step"])
        self.rows["requests"].sort(key=lambda row: row["request"])
        lost = num_lost_rows([loss for loss in trace.all_losses() if loss.engine in (engine, 0xFFFFFFFF)])
        steps = [row["engine_step"] for row in self.rows["steps"]]
        if lost or steps != list(range(len(steps))):
            raise ReplayRefused(
                f"engine {engine} cannot be re-run: steps of it are missing from the trace, so what its requests "
                "shared is not known"
            )

    @property
    def worker(self) -> dict[str, Any]:
        """What the first worker told of itself."""
        told = self.rows["workers"][0]["config"] if self.rows["workers"] else "{}"
        return dict(json.loads(told))

    @property
    def versions(self) -> list[int]:
        """Weight versions that steps ran on, ascending."""
        return sorted({row["weight_version"] for row in self.rows["steps"]})

    @property
    def plans_ahead(self) -> bool:
        """Whether a step was scheduled before the one before it had come to its end."""
        steps = self.rows["steps"]
        return any(after["time_ns"] < step["output_ns"] for step, after in pairwise(steps))

    def requests(self) -> list[dict[str, Any]]:
        """Return the requests as the job takes them."""
        return [
            {
                "id": row["request_id"],
                "prompt": row["prompt_token_ids"],
                "sampling": json.loads(row["sampling_params"]),
                "cache_salt": row["cache_salt"],
            }
            for row in self.rows["requests"]
        ]


def cannot_force(recorded: Recorded) -> str | None:
    """Name what no re-run of this engine can repeat; None where all can be."""
    vllm = recorded.config.get("vllm", {})
    parallel = vllm.get("parallel_config", {})
    kinds = ("tensor_parallel_size", "pipeline_parallel_size", "prefill_context_parallel_size")
    requests = recorded.rows["requests"]
    sampling = [json.loads(row["sampling_params"]) for row in requests]
    objects = {name for own in sampling for name, value in own.items() if isinstance(value, dict)} - {*_OBJECTS}
    reasons = {
        "what the engine was set to is not in the trace": not vllm,
        "requests of an adapter": any(row["lora"] for row in requests),
        "images or audio": any(row["num_mm_features"] for row in requests),
        "prompts without token ids": any(not row["prompt_token_ids"] for row in requests),
        "speculative decoding": any(row["num_draft"] for row in recorded.rows["scheduled"]),
        "requests by priority": vllm.get("scheduler_config", {}).get("policy") == "priority",
        "several workers": any((parallel.get(kind) or 1) > 1 for kind in kinds),
        "KV from elsewhere": bool(vllm.get("kv_transfer_config")),
        "logits processors of the job's own": bool(vllm.get("model_config", {}).get("logits_processors")),
        f"the sampling parameter {', '.join(sorted(objects))}": bool(objects),
    }
    return next((reason for reason, there in reasons.items() if there), None)


def as_recorded(recorded: Recorded, folders: Mapping[int, str]) -> list[Event]:
    """Return the events of one engine in their order.

    Args:
        recorded: its rows.
        folders: with the weights of each version that a step ran on.
    """
    rows = recorded.rows
    timed: list[tuple[int, int, Event]] = [(r["time_ns"], _ADD, ["add", r["request"]]) for r in rows["requests"]]
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
