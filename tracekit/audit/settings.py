"""Settings in which the engines of two traces differ."""

from __future__ import annotations

from typing import Any

from tracekit.audit.lint.from_trace import subjects_of
from tracekit.audit.lint.types import Subject
from tracekit.trace.reader import Trace


def differing_settings(first: Trace, second: Trace) -> dict[str, tuple[Any, Any]]:
    """Return, by the names of vLLM's engine arguments, the resolved values that are not the same.

    A trace of several engines has a list of its values where they disagree. `vllm`, `generation`, `dtype` and what lint
    looks at are compared; a setting that one of the two does not record is not.
    """
    one, other = (_settings(trace) for trace in (first, second))
    return {
        name: (one[name], other[name]) for name in one if name in other and _folded(one[name]) != _folded(other[name])
    }


def _folded(value: Any) -> Any:
    """A value as it compares: V0 spells the names of an enumeration in capitals."""
    return value.lower() if isinstance(value, str) else value


def _settings(trace: Trace) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    for subject in subjects_of(trace):
        for name, value in _of_one(subject).items():
            if value is not None and value not in found.setdefault(name, []):
                found[name].append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items() if values}


def _of_one(subject: Subject) -> dict[str, Any]:
    about = subject.rows.about if subject.rows is not None else {}
    model = {f"hf_config.{name}": subject.hf_config.get(name) for name in _MODEL}
    return {"vllm": about.get("engine_version"), "generation": about.get("kind"), **subject.settings, **model}


# of the model's own configuration: what changes its numbers
_MODEL = (
    "vocab_size",
    "num_hidden_layers",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "tie_word_embeddings",
    "sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
)
