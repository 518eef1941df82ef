"""What changes an engine's numbers from outside: files and options that a trainer does not see."""

from __future__ import annotations

import json

from tracekit.audit.lint.adapters import on_some_requests
from tracekit.audit.lint.defaults import FILE, NEUTRAL, OVERRIDE, changes
from tracekit.audit.lint.model_config import differences, unsaid
from tracekit.audit.lint.types import BREAKS, NOTE, RISK, Rule, Sampling, Subject, some


def _file(subject: Subject) -> str | None:
    if subject.defaults.whole or subject["generation_config"] is None:
        return _filled_in(subject, FILE)
    unknown = f"the {FILE} of generation_config {subject['generation_config']!r} is not known here"
    if subject.rows is not None:
        shown = some(subject, lambda g: _named(g, "", [name for name in NEUTRAL if name.endswith("_penalty")]))
        return f"{shown}, from the client or a file: {unknown}" if shown else None
    open_ = [name for name in NEUTRAL if _is_open(subject, name)]
    return f"{unknown}; requests do not name {', '.join(open_)}" if open_ else None


def _filled_in(subject: Subject, source: str) -> str | None:
    """Say what a source of defaults filled in, or would where requests leave it open."""
    if subject.rows is not None:
        return some(subject, lambda g: _named(g, source, list(NEUTRAL)))
    found = {name: value for name, value in subject.defaults.of(source).items() if _is_open(subject, name)}
    return f"{source} sets " + ", ".join(f"{name} {value:g}" for name, value in found.items()) if found else None


def _named(group: Sampling, source: str, names: list[str]) -> str:
    values = {name: group.get(name, NEUTRAL[name]) for name in names}
    own = {n: v for n, v in values.items() if changes(n, v) and group.defaults.source(n, v) == source}
    return ", ".join(f"{name} {value:g}" for name, value in own.items())


def _is_open(subject: Subject, name: str) -> bool:
    return not subject.sampling or any(group.params.get(name) is None for group in subject.sampling)


def _overridden(subject: Subject) -> str | None:
    overrides, parts = subject["hf_overrides"], []
    if isinstance(overrides, dict):
        # the head has a rule of its own
        parts += [f"hf_overrides {name}={json.dumps(v)}" for name, v in overrides.items() if name != "head_dtype"]
    elif overrides:
        parts.append(f"hf_overrides {overrides}")
    parts += [f"{n} {json.dumps(subject[n])}" for n in ("hf_config_path", "rope_scaling", "rope_theta") if subject[n]]
    if subject.trainer is not None and subject.hf_config and not _differs(subject):
        return None  # the trainer has the same
    return ", ".join(parts) or None


def _random(subject: Subject) -> str | None:
    if str(subject["load_format"] or "").lower() != "dummy":
        return None
    if subject.rows is None:
        return None if subject.updates_weights else "load_format is 'dummy', and no weights are to be loaded"
    count = int((subject.rows.accepted["weight_version"] == 0).sum())
    return f"load_format is 'dummy', tokens sampled before anything was loaded: {count}" if count else None


def _differs(subject: Subject) -> str | None:
    if subject.trainer is None:
        return None
    return "; ".join(differences(subject.hf_config, subject.trainer.config)) or None


def _unsaid(subject: Subject) -> str | None:
    if subject.trainer is None:
        return None
    if not subject.hf_config:
        return "nothing could be compared: the trace does not have the engine's configuration"
    return "; ".join(unsaid(subject.hf_config, subject.trainer.config)) or None


def _sampled_otherwise(subject: Subject) -> str | None:
    trainer = subject.trainer
    if trainer is None:
        return None
    said = {name: value for name in NEUTRAL if isinstance(value := trainer.generation.get(name), int | float)}

    def one(group: Sampling) -> str:
        values = {name: group.get(name, NEUTRAL[name]) for name in said}
        other = {n: v for n, v in values.items() if v != said[n] and (changes(n, v) or changes(n, said[n]))}
        return ", ".join(f"{name} {value:g}, in the folder {said[name]:g}" for name, value in other.items())

    return some(subject, one)


RULES = (
    Rule(
        "generation-config-sampling",
        RISK,
        "What a request to the server, or to LLM without parameters, does not name comes from generation_config.json.",
        'generation_config="vllm", or name every sampling parameter in the request',
        "https://github.com/NVIDIA-NeMo/RL/issues/3497",
        _file,
    ),
    Rule(
        "engine-sampling-defaults",
        RISK,
        "What a request to the server, or to LLM without parameters, does not name comes from the engine's arguments.",
        "override_generation_config={}, or name every sampling parameter in the request",
        "vLLM 0.18.1, config/model.py, get_diff_sampling_param",
        lambda s: _filled_in(s, OVERRIDE),
    ),
    Rule(
        "overridden-config",
        RISK,
        "The engine computes with another configuration than the model folder's, which a trainer reads.",
        "hf_overrides={}, or the same values in the trainer's config.json (compare with --trainer-config)",
        "vLLM 0.18.1, config/model.py, hf_overrides",
        _overridden,
    ),
    Rule(
        "random-weights",
        BREAKS,
        "The engine filled its weights with random numbers, which no trainer has.",
        'load_format="auto", or load the weights before the first request',
        "vLLM 0.18.1, model_executor/model_loader/dummy_loader.py",
        _random,
    ),
    Rule(
        "trainer-config-differs",
        BREAKS,
        "The trainer's model folder describes another model than the one that the engine computed.",
        "the same config.json on both sides, and no hf_overrides",
        "vLLM 0.18.1, transformers_utils/config.py, get_config",
        _differs,
    ),
    Rule(
        "trainer-config-unsaid",
        NOTE,
        "What one side does not name takes the default of its model class and version, which may be another.",
        "name it in the trainer's config.json",
        "https://huggingface.co/docs/transformers/main_classes/configuration",
        _unsaid,
    ),
    Rule(
        "trainer-generation-config-differs",
        NOTE,
        "A trainer that takes its sampling parameters from its model folder scores another distribution.",
        "the parameters that the rollouts were sampled with, in the trainer",
        "https://github.com/NVIDIA-NeMo/RL/pull/935",
        _sampled_otherwise,
    ),
    Rule(
        "adapter-on-some-requests",
        RISK,
        "Requests without the adapter sample from the base model, which is not the policy that is trained.",
        "name the adapter in every request, or score those without it with the base model",
        "https://github.com/huggingface/trl/issues/7017",
        on_some_requests,
    ),
)
