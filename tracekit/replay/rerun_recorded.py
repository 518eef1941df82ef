"""The rows of one recorded engine that a re-run needs, and what of them cannot be forced."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from tracekit.errors import ReplayRefused
from tracekit.trace.ledger import num_lost_rows

if TYPE_CHECKING:
    from tracekit.trace.reader import Trace

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
        trace = trace.only(engine)
        (self.row,) = trace.engines()
        self.config: dict[str, Any] = json.loads(self.row.get("config") or "{}")
        names = ("requests", "tokens", "steps", "scheduled", "cache", "finishes", "control", "workers", "fingerprints")
        self.rows = {name: trace.table(name).to_pylist() for name in names}
        self.rows["steps"].sort(key=lambda row: row["engine_step"])
        self.rows["requests"].sort(key=lambda row: row["request"])
        lost = num_lost_rows([loss for loss in trace.all_losses() if loss.engine in (engine, None)])
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

    @property
    def room(self) -> int:
        """Tokens that a step may compute."""
        scheduler = self.config.get("vllm", {}).get("scheduler_config", {})
        return int(scheduler.get("max_num_scheduled_tokens") or scheduler["max_num_batched_tokens"])

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
        "logits processors of the job's own": bool(vllm.get("model_config", {}).get("logits_processors"))
        or any(own.get("logits_processors") for own in sampling),
        f"the sampling parameter {', '.join(sorted(objects))}": bool(objects),
    }
    return next((reason for reason, there in reasons.items() if there), None)
