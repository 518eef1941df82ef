"""Weight updates: what keys and values survive them, and what happens to the rollouts that are under way."""

from __future__ import annotations

import numpy as np

from tracekit.audit.lint.adapters import reused_names
from tracekit.audit.lint.deleted import deleted_tokens
from tracekit.audit.lint.resets import argument, clears, kept_blocks, salted
from tracekit.audit.lint.running import crossings, num_running
from tracekit.audit.lint.stale import stale_hits
from tracekit.audit.lint.types import BREAKS, NOTE, RISK, Rule, Subject
from tracekit.plural import plural

SHOWN = 5
KEEP = 'pause_generation(mode="keep", clear_cache=False)'


def _caching(subject: Subject) -> str | None:
    rows = subject.rows
    if not subject["enable_prefix_caching"] or not subject.updates_weights:
        return None
    if rows is None:
        return "enable_prefix_caching is on, and weights are to be updated"
    kept, changes = kept_blocks(rows)
    if not kept.size or salted(rows):
        return None
    return f"no reset of the cache with {kept.size} of {changes} weight changes: {_before(kept.tolist())}"


def _stale(subject: Subject) -> str | None:
    hits = stale_hits(subject.rows) if subject.rows is not None else []
    if not hits:
        return None
    shown = "; ".join(
        f"request {h.request} in engine step {h.engine_step}: {h.num_stale} of {plural(h.num_blocks, 'block')} hold "
        f"keys and values of weight version {h.oldest_version}, sampled under {h.weight_version}"
        for h in hits[:SHOWN]
    )
    return f"{plural(len(hits), 'hit')}: {shown}" + (f"; and {len(hits) - SHOWN} more" if len(hits) > SHOWN else "")


def _keeps_and_clears(subject: Subject) -> str | None:
    """Say where a pause keeps the rollouts and clears the cache under them; None where none does."""
    rows = subject.rows
    if rows is None:
        plan = subject.update or {}
        if plan.get("mode") == "keep" and plan.get("clear_cache", True):
            return "planned: mode keep, clear_cache true"
        return None
    pauses = [row["engine_step"] for row in rows.control if clears(row) and argument(row, 0, "mode", "abort") == "keep"]
    hit = {step: number for step in pauses if (number := num_running(rows, step))}
    return f"running rollouts: {sum(hit.values())}, {_before(list(hit))}" if hit else None


def _before(steps: list[int]) -> str:
    more = f" and {len(steps) - SHOWN} more" if len(steps) > SHOWN else ""
    return f"before engine step {', '.join(map(str, steps[:SHOWN]))}{more}"


def _deletes(subject: Subject) -> bool:
    return subject.version[:2] == (0, 18) and bool(subject["async_scheduling"])


def _deleted(subject: Subject) -> str | None:
    found = deleted_tokens(subject.rows) if subject.rows is not None else []
    if not found:
        return None
    shown = ", ".join(f"request {request} at position {position}" for request, position in found[:SHOWN])
    return f"{plural(len(found), 'rollout')}: {shown}"


def _in_flight(subject: Subject) -> str | None:
    if subject.rows is None:
        return None
    count = np.unique(crossings(subject.rows)).size
    rollouts = plural(count, "rollout has", "rollouts have")
    return f"{rollouts} tokens of more than one weight version" if count else None


def _connector(subject: Subject) -> str | None:
    if not subject["kv_transfer_config"] or not subject.updates_weights:
        return None
    if subject.rows is None:
        return "kv_transfer_config is set, and weights are to be updated"
    kept, changes = kept_blocks(subject.rows, connector=True)
    if not kept.size:
        return None
    return f"no reset of the connector with {kept.size} of {changes} weight changes: {_before(kept.tolist())}"


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
        "reset_prefix_cache() after each update, enable_prefix_caching=False, or cache_salt=the weight version",
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
        "Running rollouts are preempted and their KV is computed anew, while their earlier logprobs stay as they were.",
        KEEP,
        "https://huggingface.co/blog/ServiceNow-AI/correctness-before-corrections",
        lambda s: _keeps_and_clears(s) if not _deletes(s) else None,
    ),
    Rule(
        "in-flight-update",
        NOTE,
        "A replay has to score each token under the weights that sampled it, and over the KV that older ones left.",
        "tracekit replay --weights VERSION=PATH, once per version",
        "https://github.com/vllm-project/vllm/issues/54443",
        _in_flight,
    ),
    Rule(
        "kv-connector-with-weight-updates",
        RISK,
        "A KV connector keeps blocks of the old weights; vLLM 0.18 clears them only in a reset that asks for it.",
        "kv_transfer_config=None, or reset_prefix_cache(reset_connector=True) after each update",
        "https://github.com/vllm-project/vllm/pull/57970",
        _connector,
    ),
    Rule(
        "lora-name-reused",
        RISK,
        "Cached blocks are tied to an adapter's id (V0), name (0.18), or name and path (0.32), not to its weights.",
        "a new lora_name, lora_int_id and lora_path for each version, or reset_prefix_cache() after each load",
        "vLLM 0.18.1, v1/core/kv_cache_utils.py, generate_block_hash_extra_keys",
        reused_names,
    ),
)
