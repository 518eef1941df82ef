"""The subjects of a recorded trace: one per engine."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tracekit.audit.lint.defaults import defaults_of, read_generation_config
from tracekit.audit.lint.trainer import Trainer
from tracekit.audit.lint.types import Sampling, Subject
from tracekit.audit.rows import EngineRows, read_engines
from tracekit.trace.reader import Trace
from tracekit.trace.values import json_object

# engine argument -> where the recorded configuration has it
_PLACES = {
    "logprobs_mode": ("model_config", "logprobs_mode"),
    "dtype": ("model_config", "dtype"),
    "quantization": ("model_config", "quantization"),
    "enforce_eager": ("model_config", "enforce_eager"),
    "disable_cascade_attn": ("model_config", "disable_cascade_attn"),
    "hf_config_path": ("model_config", "hf_config_path"),
    "hf_overrides": ("model_config", "hf_overrides"),
    "rope_scaling": ("model_config", "rope_scaling"),
    "rope_theta": ("model_config", "rope_theta"),
    "generation_config": ("model_config", "generation_config"),
    "override_generation_config": ("model_config", "override_generation_config"),
    "logits_processors": ("model_config", "logits_processors"),
    "enable_return_routed_experts": ("model_config", "enable_return_routed_experts"),
    "enable_prefix_caching": ("cache_config", "enable_prefix_caching"),
    "kv_cache_dtype": ("cache_config", "cache_dtype"),
    "async_scheduling": ("scheduler_config", "async_scheduling"),
    "speculative_config": ("speculative_config",),
    "kv_transfer_config": ("kv_transfer_config",),
    "weight_transfer_config": ("weight_transfer_config",),
    "load_format": ("load_config", "load_format"),
    "tensor_parallel_size": ("parallel_config", "tensor_parallel_size"),
    "is_moe": ("parallel_config", "is_moe_model"),
    "compilation_mode": ("compilation_config", "mode"),
    "cudagraph_mode": ("compilation_config", "cudagraph_mode"),
    "device": ("device_config", "device_type"),
}


def subjects_of(
    trace: Trace, trainer: Trainer | None = None, engines: Iterable[EngineRows] | None = None
) -> list[Subject]:
    """Return what is to be judged of each engine of a trace.

    Args:
        trainer: the model folder of the trainer that the rollouts are for.
        engines: the rows of the trace, where they were read before.

    Raises:
        TraceCorruptError: a batch is not what was written.
    """
    heads = {
        row["engine"]: json_object(row["config"], "the settings of a worker").get("head")
        for row in trace.table("workers").to_pylist()
    }
    found = read_engines(trace) if engines is None else engines
    return [_subject(rows, heads.get(rows.engine), trainer) for rows in found]


def version_of(text: str) -> tuple[int, ...]:
    """`0.18.1+cpu` → (0, 18, 1); empty where it does not start with a number."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def _subject(rows: EngineRows, head: dict[str, Any] | None, trainer: Trainer | None) -> Subject:
    settings: dict[str, Any] = {name: rows.setting(*path) for name, path in _PLACES.items()}
    settings["head"] = head  # as a worker found it
    # V0 has no such setting, its row says what its numbers are
    settings["logprobs_mode"] = rows.about.get("logprobs_mode") or settings["logprobs_mode"]
    groups: dict[str, list[int]] = {}
    numbers = rows["requests"]["request"].tolist()
    for number, text in zip(numbers, rows.requests.column("sampling_params").to_pylist(), strict=True):
        groups.setdefault(text, []).append(number)
    version = version_of(str(rows.about.get("engine_version", "")))
    file = rows.config.get("generation_config")
    if not isinstance(file, dict):  # not recorded: as it is now, where the folder is on this machine
        model = settings["hf_config_path"] or rows.about.get("model")
        file = read_generation_config(model, settings["generation_config"])
    defaults = defaults_of(settings, version, file)
    sampling = [
        Sampling(json_object(text, "sampling parameters"), tuple(requests), defaults)
        for text, requests in groups.items()
    ]
    name = f"engine {rows.engine}"
    return Subject(name, version, settings, sampling, rows=rows, defaults=defaults, trainer=trainer)
