"""Weight updates: what keys and values survive them, and what happens to the rollouts that are under way."""

import json
from collections import defaultdict
from typing import Any

import numpy as np

from tracekit.audit.lint.deleted import deleted_tokens
from tracekit.audit.lint.stale import stale_hits
from tracekit.audit.lint.types import BREAKS, NOTE, RISK, Rule, Subject

__all__ = ["RULES"]

SHOWN = 5
KEEP = 'pause_generation(mode="keep", clear_cache=False)'


def _caching(subject: Subject) -> str | None:
    if not subject["enable_prefix_caching"] or not subject.updates_weights:
        return None
    if subject.rows is None:
        return "enable_prefix_caching is on, and weights are to be updated"
    salts = subject.rows.requests.column("cache_salt").to_pylist()
    if salts and None not in salts:
        return None  # presumably the version: no block is shared across updates
    return f"enable_prefix_caching is on, and weights changed {subject.rows.num_updates} times"


def _stale(subject: Subject) -> str | None:
    hits = stale_hits(subject.rows) if subject.rows is not None else []
    if not hits:
        return None
    shown = "; ".join(
        f"request {h.request} in engine step {h.engine_step}: {h.num_stale} of {h.num_blocks} blocks hold keys and "
        f"values of weight version {h.oldest_version}, sampled under {h.weight_version}"
        for h in hits[:SHOWN]
    )
    return f"{len(hits)} hits: {shown}" + (f"; and {len(hits) - SHOWN} more" if len(hits) > SHOWN else "")


def _keeps_and_clears(subject: Subject) -> str | None:
    """Say where a pause keeps the rollouts and clears the cache under them; None where none does."""
    if subject.rows is None:
        plan = subject.update or {}
        if plan.get("mode") == "keep" and plan.get("clear_cache", True):
            return "planned: mode keep, clear_cache true"
        return None
    steps = [row["engine_step"] for row in subject.rows.control if _is_keep_and_clear(row)]
    return f"{len(steps)} times, before engine step {', '.join(map(str, steps[:SHOWN]))}" if steps else None


def _is_keep_and_clear(row: dict[str, Any]) -> bool:
    if row["name"] not in ("pause_scheduler", "pause_generation"):
        return False
    arguments = json.loads(row["arguments"])
    args, kwargs = arguments.get("args") or [], arguments.get("kwargs") or {}
    mode = kwargs.get("mode", args[0] if args else "abort")
    clears = kwargs.get("clear_cache", args[1] if len(args) > 1 else True)
    return bool(mode == "keep" and clears)


def _deletes(subject: Subject) -> bool:
    return subject.version[:2] == (0, 18) and bool(subject["async_scheduling"])


def _deleted(subject: Subject) -> str | None:
    found = deleted_tokens(subject.rows) if subject.rows is not None else []
    if not found:
        return None
    shown = ", ".join(f"request {request} at position {position}" for request, position in found[:SHOWN])
    return f"{len(found)} rollouts: {shown}"


def _in_flight(subject: Subject) -> str | None:
    if subject.rows is None:
        return None
    tokens = subject.rows.accepted
    request, version = tokens["request"], tokens["weight_version"]
    crossing = (request[1:] == request[:-1]) & (version[1:] != version[:-1])
    count = np.unique(request[1:][crossing]).size
    return f"{count} rollouts have tokens of more than one weight version" if count else None


def _connector(subject: Subject) -> str | None:
    if not subject["kv_transfer_config"] or not subject.updates_weights:
        return None
    return "kv_transfer_config is set, and weights are updated"


def _lora(subject: Subject) -> str | None:
    if subject.rows is None or not subject["enable_prefix_caching"]:
        return None
    places: dict[str, list[str]] = defaultdict(list)  # where each name's weights came from, in order
    for row in subject.rows.control:
        if row["name"] == "add_lora":
            arguments = json.loads(row["arguments"])
            for adapter in [*(arguments.get("args") or []), *(arguments.get("kwargs") or {}).values()]:
                if isinstance(adapter, dict) and adapter.get("lora_name"):
                    places[adapter["lora_name"]].append(f"{adapter.get('lora_path')} ({adapter.get('lora_int_id')})")
    # most adapters are loaded by the first request that names them
    for row in subject.rows.requests.select(["lora", "lora_path", "lora_id"]).to_pylist():
        if row["lora"] is not None and row["lora_path"] is not None:
            places[row["lora"]].append(f"{row['lora_path']} ({row['lora_id']})")
    pointed = {name: list(dict.fromkeys(told)) for name, told in places.items()}
    return "; ".join(f"{name!r} was {', then '.join(told)}" for name, told in pointed.items() if len(told) > 1) or None


RULES = (
    Rule(
        "stale-prefix-hits",
        BREAKS,
        "Blocks that older weights computed were reused after an update: no reset of the prefix cache came between.",
        "enable_prefix_caching=False, reset_prefix_cache() after each update, or cache_salt=the weight version",
        "https://github.com/NVIDIA-NeMo/RL/pull/4018",
        _stale,
    ),
    Rule(
        "prefix-caching-with-weight-updates",
        RISK,
        "Nothing ties the prefix cache to the weights: after an update it serves keys and values of the old ones.",
        "enable_prefix_caching=False, or cache_salt=the weight version",
        "https://huggingface.co/blog/ServiceNow-AI/correctness-before-corrections",
        _caching,
    ),
    Rule(
        "pause-keep-deletes-a-token",
        BREAKS,
        "In vLLM 0.18 under async scheduling this drops the next valid token of every rollout that is under way.",
        f"{KEEP}, or async_scheduling=False",
        "vLLM 0.18.1, v1/core/sched/async_scheduler.py, _update_request_with_output; gone in 0.22.1",
        lambda s: _keeps_and_clears(s) if _deletes(s) else None,
    ),
    Rule(
        "deleted-token",
        BREAKS,
        "The engine computed on from a token that it never gave to the client, so the trainer's context is another.",
        f"{KEEP}, or async_scheduling=False",
        "vLLM 0.18.1, v1/core/sched/async_scheduler.py, _update_request_with_output; gone in 0.22.1",
        _deleted,
    ),
    Rule(
        "pause-keep-recomputes",
        RISK,
        "Every running rollout is preempted and its KV computed anew, while its earlier logprobs stay as they were.",
        KEEP,
        "https://huggingface.co/blog/ServiceNow-AI/correctness-before-corrections",
        lambda s: _keeps_and_clears(s) if not _deletes(s) else None,
    ),
    Rule(
        "in-flight-update",
        NOTE,
        "A replay has to score each token under the weights that sampled it, and over the KV that older ones left.",
        "tracekit replay --weights VERSION=PATH, once a version",
        "https://github.com/vllm-project/vllm/issues/54443",
        _in_flight,
    ),
    Rule(
        "kv-connector-with-weight-updates",
        RISK,
        "A KV connector keeps blocks of the old weights, whatever is cleared in the engine.",
        "kv_transfer_config=None",
        "https://github.com/vllm-project/vllm/pull/57970",
        _connector,
    ),
    Rule(
        "lora-name-reused",
        RISK,
        "Cached blocks are tied to an adapter's name (0.18) or path, so one loaded under the same reuses old blocks.",
        "a new lora_name for each version, or reset_prefix_cache() after each load",
        "vLLM 0.18.1, v1/core/kv_cache_utils.py, generate_block_hash_extra_keys",
        _lora,
    ),
)
