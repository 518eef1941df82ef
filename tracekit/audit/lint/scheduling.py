"""Scheduling and sampling paths: what else is in the batch, and what observing changes."""

from __future__ import annotations

import numpy as np

from tracekit.audit.lint.foreign import foreign_blocks
from tracekit.audit.lint.semantic import asks_of_prompts
from tracekit.audit.lint.temperature import LOWEST_TEMPERATURE
from tracekit.audit.lint.types import BREAKS, NOTE, RISK, Rule, Sampling, Subject, some
from tracekit.plural import plural
from tracekit.tables import PREEMPTED


def _seeds(subject: Subject) -> str | None:
    if subject["device"] != "cpu" or subject.version[:2] != (0, 18):
        return None
    seeded = [g for g in subject.sampling if g.params.get("seed") is not None and not g.greedy]
    unseeded = [g for g in subject.sampling if g.params.get("seed") is None]
    if not seeded or not unseeded:
        return None
    if subject.rows is None:
        return "some requests have a seed and some have none"
    scheduled = subject.rows["scheduled"]
    with_seed = np.isin(scheduled["request"], [r for g in seeded for r in g.requests])
    shared = np.intersect1d(scheduled["engine_step"][with_seed], scheduled["engine_step"][~with_seed])
    steps = plural(shared.size, "engine step")
    return f"{steps} ran requests with and without a seed together" if shared.size else None


def _prompt_logprobs(subject: Subject) -> str | None:
    if subject.is_v0 or not subject["enable_prefix_caching"]:
        return None  # V0 reads the cache for them as for others
    asked = "prompt_logprobs"
    return some(subject, lambda g: f"{asked} {g.params[asked]}" if asks_of_prompts(g) and _skips(g) else "")


def _skips(group: Sampling) -> bool:
    return group.params.get("skip_reading_prefix_cache") is not False


def _hits(subject: Subject) -> str | None:
    if subject.rows is None:
        return None
    found = subject.rows.first_hits["num_computed"]
    return f"{plural(found.size, 'request')}, {plural(int(found.sum()), 'token')}" if found.size else None


def _preempted(subject: Subject) -> str | None:
    if subject.rows is None:
        return None
    scheduled = subject.rows["scheduled"]
    out = scheduled["request"][(scheduled["flags"] & PREEMPTED) != 0]
    return f"{plural(out.size, 'preemption')} of {plural(np.unique(out).size, 'request')}" if out.size else None


def _foreign(subject: Subject) -> str | None:
    found = foreign_blocks(subject.rows) if subject.rows is not None else []
    if not found:
        return None
    shown = "; ".join(
        f"request {request} in engine step {step}: {plural(count, 'block')}" for request, step, count in found[:5]
    )
    return f"{plural(len(found), 'resumption')}: {shown}"


def _raised_temperature(group: Sampling) -> str:
    asked = group.get("temperature", 1.0)
    if not 0 < asked <= LOWEST_TEMPERATURE:
        return ""
    # a record has what the engine made of it
    return f"temperature {asked:g}" + (", or less" if group.requests else f" becomes {LOWEST_TEMPERATURE:g}")


RULES = (
    Rule(
        "resumed-on-foreign-blocks",
        BREAKS,
        "V0 counts a waiting request's cached blocks once: it goes on from keys and values that others wrote since.",
        "enable_prefix_caching=False, or so much memory for the KV cache that nothing is preempted",
        "vLLM 0.8.5, core/block/prefix_caching_block.py, ComputedBlocksTracker.get_num_cached_tokens",
        _foreign,
    ),
    Rule(
        "async-scheduling",
        NOTE,
        "Steps are dispatched before the last output is known: what V0 did at an engine boundary comes a step later.",
        "async_scheduling=False",
        "https://huggingface.co/blog/ServiceNow-AI/correctness-before-corrections",
        lambda s: "async_scheduling is on" if s["async_scheduling"] else None,
    ),
    Rule(
        "seeds-ignored",
        RISK,
        "On the CPU vLLM 0.18 samples a whole batch from the global generator as soon as one request has no seed.",
        "a seed for every request, or none",
        "vLLM 0.18.1, v1/sample/ops/topk_topp_sampler.py, forward_cpu",
        _seeds,
    ),
    Rule(
        "prompt-logprobs",
        RISK,
        "Asking for prompt logprobs makes a request skip the prefix cache, which hides faults of the cache.",
        "SamplingParams(prompt_logprobs=None)",
        "vLLM 0.18.1, sampling_params.py, skip_reading_prefix_cache",
        _prompt_logprobs,
    ),
    Rule(
        "raised-temperature",
        NOTE,
        "vLLM raises a temperature between 0 and 0.01 to 0.01; a trainer that divides by what was asked for is off.",
        "temperature=0, or 0.01 in the trainer as well",
        "vLLM 0.8.5 to 0.32.0, sampling_params.py, _MAX_TEMP",
        lambda s: some(s, _raised_temperature),
    ),
    Rule(
        "prefix-hits",
        NOTE,
        "The rest of a prompt is computed apart from its cached part, which rounds differently.",
        "enable_prefix_caching=False",
        "https://github.com/vllm-project/vllm/issues/42019",
        _hits,
    ),
    Rule(
        "preemptions",
        NOTE,
        "A preempted request's tokens are computed again as a prompt, with the weights of that time, unless V0 swaps.",
        "fewer max_num_seqs, or more memory for the KV cache",
        "https://github.com/vllm-project/vllm/pull/29071",
        _preempted,
    ),
)
